"""Annotations and pictures to packed batches; never imports `pixel_sail.model`."""
