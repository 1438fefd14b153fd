"""What `pixel-sail mask-errors` does, for launchers and clones: pixel_sail/commands/mask_errors.py."""

from pixel_sail.commands.mask_errors import main

if __name__ == "__main__":
    main()
