"""What `pixel-sail compare` does, for launchers and clones: pixel_sail/commands/compare.py."""

from pixel_sail.commands.compare import main

if __name__ == "__main__":
    main()
