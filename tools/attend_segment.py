"""What `pixel-sail attend-segment` does, for launchers and clones: pixel_sail/commands/attend_segment.py."""

from pixel_sail.commands.attend_segment import main

if __name__ == "__main__":
    main()
