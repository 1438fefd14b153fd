"""What `pixel-sail test` does, for launchers and clones: pixel_sail/commands/test.py."""

from pixel_sail.commands.test import main

if __name__ == "__main__":
    main()
