"""What `pixel-sail demo` does, for launchers and clones: pixel_sail/commands/demo.py."""

from pixel_sail.commands.demo import main

if __name__ == "__main__":
    main()
