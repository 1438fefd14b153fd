"""Exports of annotation tools (labelme, YOLO, COCO), read once and written as one COCO dataset: docs/own_data.md."""
