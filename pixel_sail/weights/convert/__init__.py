"""Models to start from: one file for each family of released weights, and one for none."""
