"""What `pixel-sail ablate` does, for launchers and clones: pixel_sail/commands/ablate.py."""

from pixel_sail.commands.ablate import main

if __name__ == "__main__":
    main()
