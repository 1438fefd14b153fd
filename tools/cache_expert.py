"""What `pixel-sail cache-expert` does, for launchers and clones: pixel_sail/commands/cache_expert.py."""

from pixel_sail.commands.cache_expert import main

if __name__ == "__main__":
    main()
