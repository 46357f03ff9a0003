"""Models, losses and post-processors. `build_model(args)` wires them from the flags of main.py."""

from .detr import build, default_num_classes

__all__ = ["build_model", "default_num_classes"]

build_model = build
