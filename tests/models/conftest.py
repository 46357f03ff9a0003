"""The batch that most tests of the criterion and the matcher use."""

from typing import Any

import pytest

from tests.models.losses_by_layer import COUNTS, make_outputs, make_targets


@pytest.fixture
def batch() -> tuple[Any, Any]:
    """Outputs for two images, and targets with two and four objects."""
    return make_outputs(len(COUNTS))[0], make_targets(COUNTS)
