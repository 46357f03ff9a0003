"""The tests. One thread each, in their processes too: two run at a time (`make test`)."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # here, as this file is read before any that imports torch
