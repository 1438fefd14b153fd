"""What `pixel-sail predict` does, for launchers and clones: pixel_sail/commands/predict.py."""

from pixel_sail.commands.predict import main

if __name__ == "__main__":
    main()
