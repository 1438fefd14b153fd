"""What `pixel-sail grounding-emergence` does, for launchers and clones: pixel_sail/commands/grounding_emergence.py."""

from pixel_sail.commands.grounding_emergence import main

if __name__ == "__main__":
    main()
