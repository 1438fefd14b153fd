"""Attend-and-segment (PixFoundation, arXiv 2502.04192): masks from the attention of any MLLM."""
