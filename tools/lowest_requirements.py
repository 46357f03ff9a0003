"""requirements-lowest.txt, made from the other files: the lowest versions that they allow.

    python -m tools.lowest_requirements     write it anew, after a bound was changed

`make test-lowest` installs it. An app's and the developers' tools are left out: no test there touches them.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("requirements.txt", "requirements-extra.txt", "requirements-test.txt")
WRITTEN = ROOT / "requirements-lowest.txt"
HEAD = "# Made by `python -m tools.lowest_requirements` from {}.\n"


def lowest(text: str) -> list[str]:
    """The requirements of a file, `NAME>=VERSION` with a remark behind it perhaps, as `NAME==VERSION`.

    Raises:
        ValueError: one has no lowest version.
    """
    pinned = []
    for line in text.splitlines():
        requirement = line.partition("#")[0].strip()
        if not requirement or requirement.startswith("-r "):
            continue
        bound = re.fullmatch(r"([\w-]+)>=([\w.]+)(,.*)?", requirement)
        if bound is None:
            raise ValueError(f"{requirement}: its lowest version is not said, as in NAME>=VERSION")
        pinned.append(f"{bound[1]}=={bound[2]}")
    return pinned


def content() -> str:
    """What requirements-lowest.txt is to hold."""
    lines = [line for name in SOURCES for line in lowest((ROOT / name).read_text(encoding="utf-8"))]
    return HEAD.format(", ".join(SOURCES)) + "\n".join(lines) + "\n"


if __name__ == "__main__":
    WRITTEN.write_text(content(), encoding="utf-8")
