"""What the larger commands do once their arguments are parsed. Each is imported by the command of its name, then."""
