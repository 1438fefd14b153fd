"""`python -m pixel_sail SUBCOMMAND ...`: the same as `pixel-sail SUBCOMMAND ...`."""

from pixel_sail.commands.front import main

if __name__ == "__main__":
    main()
