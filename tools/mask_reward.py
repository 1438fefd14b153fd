"""What `pixel-sail mask-reward` does, for launchers and clones: pixel_sail/commands/mask_reward.py."""

from pixel_sail.commands.mask_reward import main

if __name__ == "__main__":
    main()
