"""What `pixel-sail inspect` does, for launchers and clones: pixel_sail/commands/inspect.py."""

from pixel_sail.commands.inspect import main

if __name__ == "__main__":
    main()
