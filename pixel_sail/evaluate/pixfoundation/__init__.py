"""PixFoundation (arXiv 2502.04192): answers and masks about the same objects, and when grounding emerges."""
