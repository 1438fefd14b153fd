"""What `pixel-sail export` does, for launchers and clones: pixel_sail/commands/export.py."""

from pixel_sail.commands.export import main

if __name__ == "__main__":
    main()
