"""What `pixel-sail mask-scores` does, for launchers and clones: pixel_sail/commands/mask_scores.py."""

from pixel_sail.commands.mask_scores import main

if __name__ == "__main__":
    main()
