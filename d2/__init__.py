"""DETR as a model of detectron2. README.md says how to use it."""
