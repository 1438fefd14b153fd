"""What `pixel-sail bench` does, for launchers and clones: pixel_sail/commands/bench.py."""

from pixel_sail.commands.bench import main

if __name__ == "__main__":
    main()
