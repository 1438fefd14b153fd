"""What `pixel-sail data` does, for launchers and clones: pixel_sail/commands/data.py."""

from pixel_sail.commands.data import main

if __name__ == "__main__":
    main()
