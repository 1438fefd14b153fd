"""The command line: `pixel-sail SUBCOMMAND`. A module for each subcommand; tools/ has a door of a few lines for each.

A module parses its arguments without torch, so that --help answers at once, and imports what does the work then. Where
the work is more than a few calls into the rooms below, it is in the module of the same name in work/.
"""
