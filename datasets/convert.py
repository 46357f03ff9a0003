"""`python -m datasets.convert`: other annotation formats to COCO's; the code stands in doctor/convert.py."""

import sys

from doctor.convert import run
from util.errors import exit_status

if __name__ == "__main__":
    sys.exit(exit_status(run))
