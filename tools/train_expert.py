"""What `pixel-sail train-expert` does, for launchers and clones: pixel_sail/commands/train_expert.py."""

from pixel_sail.commands.train_expert import main

if __name__ == "__main__":
    main()
