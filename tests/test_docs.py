"""Pages for readers: links lead somewhere, commands parse, README stays a front page."""

import re
import shlex
from pathlib import Path

import pytest

import main
from tests.helpers import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), ROOT / "tests" / "reference" / "README.md"])
TITLES = [str(page.relative_to(ROOT)) for page in PAGES]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
PLACEHOLDERS = {"…", "..."}


def anchors(text: str) -> set[str]:
    """The names that a page's headings have in links."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> list[list[str]]:
    """Words of each command in the shell blocks of a page, without comments."""
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```", text, re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    called = re.compile(r"(?:\$ )?(\S*(?:python|torchrun|srun)\b.*)")
    return [shlex.split(match[1], comments=True) for line in lines if (match := called.match(line))]


@pytest.mark.parametrize("page", PAGES, ids=TITLES)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.M | re.S)
    for link in re.findall(r"\]\((?!http)([^)\s]+)\)", prose):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", PAGES, ids=TITLES)
def test_commands_name_what_there_is(page: Path) -> None:
    """Scripts and modules exist and know the flags; those of main.py parse, values included."""
    for words in commands(TEXTS[page]):
        words = [word for word in words if word not in PLACEHOLDERS]
        if "main.py" in words and "--help" not in words:
            given = words[words.index("main.py") + 1 :]
            given = [f"@{ROOT}/{word[1:]}" if word.startswith("@recipes") else word for word in given]
            main.RecipeParser("main.py", parents=[main.get_args_parser()]).parse_args(given)
        elif words[0].endswith("python") and words[1] == "-m":
            assert find_module(words[2]), words
        elif words[0].endswith("python") and words[1] != "-c":
            assert (ROOT / words[1]).is_file(), words


def find_module(name: str) -> bool:
    """Whether it lies in this tree, or comes with Python and the tools that the pages install."""
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir() or name in ("pytest", "venv", "pip")


def test_readme_is_a_front_page() -> None:
    readme = TEXTS[ROOT / "README.md"]
    assert len(readme.splitlines()) <= 160
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in readme, f"{page.name}: README's list of pages lacks it"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_a_page_begins_with_its_commands(page: Path) -> None:
    beginning = TEXTS[page].split("\n## ")[0]
    assert "\n```" in beginning
