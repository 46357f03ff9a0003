"""Runs with_detectron2/ in processes of their own, where DETECTRON2_PATH names what setup.sh has made."""

import os

import pytest

from tests.helpers import python

CHECKS = "tests/d2/with_detectron2/checks_{}.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("DETECTRON2_PATH"),
        reason="DETECTRON2_PATH names no folder with detectron2: tests/d2/setup.sh makes one",
    ),
]


@pytest.mark.parametrize("names", ["values mapper model converter", "train_net"])
def test_with_detectron2(names: str) -> None:
    paths = os.pathsep.join([os.environ["DETECTRON2_PATH"], os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    checks = [CHECKS.format(name) for name in names.split()]
    python("-m", "pytest", "-q", "-p", "no:cacheprovider", *checks, env=environment, check=True, timeout=None)
