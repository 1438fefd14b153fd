"""What `pixel-sail perplexity` does, for launchers and clones: pixel_sail/commands/perplexity.py."""

from pixel_sail.commands.perplexity import main

if __name__ == "__main__":
    main()
