"""`python -m datasets.check`: the data set doctor, which stands in doctor/__main__.py."""

import sys

from doctor.__main__ import run
from util.errors import exit_status

if __name__ == "__main__":
    sys.exit(exit_status(run))
