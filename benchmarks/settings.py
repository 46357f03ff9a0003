"""What a benchmark is run with: machine settings, and the flags of the models it builds."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import main

DETECTOR = "--num_classes 91 --backbone_weights none --num_workers 0"
SMALL_DETECTOR = (
    "--backbone resnet18 --hidden_dim 32 --nheads 4 --dim_feedforward 32 --enc_layers 1 --dec_layers 2"
    " --num_queries 12 --scales 64 --max_size 128"
)
SEGMENTER = "--masks --dataset_file coco_panoptic --num_classes 250"
SMALL_SEGMENTER = "--hidden_dim 128 --nheads 8"  # the mask head's norms want this width


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        folder: where pictures and files are written.
        device: cpu or cuda.
        amp: off or bf16, of this project alone; peers stay in float32.
        compile: torch.compile this project's model.
        threads: of torch; 0: as torch decides.
        tiny: small models and inputs, to see that all of it runs; the ratios mean nothing.
    """

    folder: Path
    device: str = "cpu"
    amp: str = "off"
    compile: bool = False
    threads: int = 0
    tiny: bool = False

    def pick(self, full: int, tiny: int) -> int:
        """A size: that of a real run, or that of a trial."""
        return tiny if self.tiny else full

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """The size of a picture, or a small one in a trial."""
        return (64, 96) if self.tiny else (height, width)

    def flags(self, *words: str, masks: bool = False) -> argparse.Namespace:
        """main.py's flags for a detector, or with `masks` for a panoptic segmenter; words are added."""
        text = [DETECTOR, f"--device {self.device}"]
        text += [SMALL_DETECTOR] if self.tiny else []
        text += [SEGMENTER] if masks else []
        text += [SMALL_SEGMENTER] if masks and self.tiny else []
        parser = argparse.ArgumentParser(parents=[main.get_args_parser()])
        return parser.parse_args([*" ".join(text).split(), *words])
