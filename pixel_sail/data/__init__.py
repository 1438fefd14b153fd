"""Annotations and images to packed batches; never imports `pixel_sail.model`."""
