"""What `pixel-sail gpu-check` does, for launchers and clones: pixel_sail/commands/gpu_check.py."""

from pixel_sail.commands.gpu_check import main

if __name__ == "__main__":
    main()
