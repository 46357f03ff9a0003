"""The reference's command line, for its start-up: everything is imported before a flag is read.

python -m benchmarks.reference.script --help
"""

from __future__ import annotations

import argparse
import datetime  # noqa: F401
import json  # noqa: F401
import random  # noqa: F401
import time  # noqa: F401
from pathlib import Path  # noqa: F401

import numpy  # noqa: F401
import torch  # noqa: F401
from torch.utils.data import DataLoader, DistributedSampler  # noqa: F401

import main
from benchmarks.reference import criterion, data, detector, engine, evaluation, postprocess  # noqa: F401
from benchmarks.reference import segmenter as segmenter

if __name__ == "__main__":
    argparse.ArgumentParser("reference", parents=[main.get_args_parser()]).parse_args()
