"""What `pixel-sail convert` does, for launchers and clones: pixel_sail/commands/convert.py."""

from pixel_sail.commands.convert import main

if __name__ == "__main__":
    main()
