"""requirements-lowest.txt says what the other files say."""

import pytest

from tools.lowest_requirements import ROOT, WRITTEN, content, lowest


def test_the_file_is_current() -> None:
    assert WRITTEN.read_text() == content(), "run python -m tools.lowest_requirements"


def test_bounds_become_versions() -> None:
    text = "# why\n-r other.txt\n\nnumpy>=1.26\nfaster-coco-eval>=1.8,<2  # C++\n"
    assert lowest(text) == ["numpy==1.26", "faster-coco-eval==1.8"]
    for unbound in ("numpy", "numpy<3", "numpy==1.26"):
        with pytest.raises(ValueError, match=f"{unbound}: its lowest version is not said"):
            lowest(unbound)


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements*.txt")), ids=lambda path: path.name)
def test_every_requirement_has_a_lowest_version(path) -> None:
    if path != WRITTEN:
        lowest(path.read_text())
