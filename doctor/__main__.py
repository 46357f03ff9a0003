"""`python -m doctor`: the data set doctor, which stands in doctor/check.py."""

import sys

from doctor.check import run
from util.errors import exit_status

if __name__ == "__main__":
    sys.exit(exit_status(run))
