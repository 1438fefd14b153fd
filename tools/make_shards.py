"""What `pixel-sail shards` does, for launchers and clones: pixel_sail/commands/shards.py."""

from pixel_sail.commands.shards import main

if __name__ == "__main__":
    main()
