"""Measurements of speed and memory, as ratios within one run; called by tools/bench.py."""
