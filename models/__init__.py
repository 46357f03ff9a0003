"""Models, losses and post-processors. `build_model(args)` wires them from the flags of main.py."""

from .detr import build

__all__ = ["build_model"]

build_model = build
