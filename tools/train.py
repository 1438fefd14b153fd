"""What `pixel-sail train` does, for launchers and clones: pixel_sail/commands/train.py."""

from pixel_sail.commands.train import main

if __name__ == "__main__":
    main()
