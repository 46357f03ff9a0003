"""How the project is laid out: who may import whom, what must not be loaded for --help, documented names."""

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT, python

# --- Who imports whom ----------------------------------------------------------------------------------

PACKAGES = ("util", "models", "datasets")
# A folder or file -> what of ours it may import.
ALLOWED = {
    "util": ("util",),
    "models": ("models", "util"),
    "datasets": ("datasets", "util", "doctor.__main__", "doctor.convert"),  # doors to the doctor
    "engine": ("datasets.coco_eval", "datasets.panoptic_eval", "run.finite_check", "util"),
    "hubconf": ("models", "util"),
    "run": ("datasets", "engine", "models", "report", "run", "util"),
    "main": ("datasets", "doctor", "engine", "models", "report", "run", "util"),
}
NOT_OURS = {".venv", "tests", "data", "demo", "demo-panoptic", "outputs", "notebooks"}


def source_files() -> list[Path]:
    """Every Python file of the project but its tests."""
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name not in NOT_OURS]
    visible = [folder for folder in folders if not folder.name.startswith(".")]
    return sorted([*ROOT.glob("*.py"), *(path for folder in visible for path in folder.rglob("*.py"))])


SOURCES = {path.relative_to(ROOT).as_posix(): path for path in source_files()}


def module_name(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_name(file) for file in SOURCES}


@functools.cache
def syntax(file: str) -> ast.Module:
    return ast.parse(SOURCES[file].read_text(encoding="utf-8"))


def imported(file: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that a file imports, inside functions and by import_module too."""
    package = module_name(file) if file.endswith("__init__.py") else module_name(file).rpartition(".")[0]
    for node in ast.walk(syntax(file)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and "." in str(node.value) and node.value in MODULES:
            yield node.lineno, str(node.value)  # what import_module is given


def is_within(name: str, parents: tuple[str, ...]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def test_the_walk_sees_imports_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import util.misc\ndef f():\n    from models import detr\nfrom . import coco\nX = 'datasets.coco'"
    monkeypatch.setattr(sys.modules[__name__], "syntax", lambda file: ast.parse(text))
    found = [name for _, name in imported("datasets/made_up.py")]
    assert sorted(found) == ["datasets.coco", "datasets.coco", "models.detr", "util.misc"]


@pytest.mark.parametrize("importer", ALLOWED)
def test_import_directions(importer: str) -> None:
    files = [file for file in SOURCES if file == f"{importer}.py" or file.startswith(f"{importer}/")]
    assert files, f"{importer} is not there"
    ours = tuple({name.partition(".")[0] for name in MODULES})
    forbidden = [
        f"{file}:{line} imports {name}"
        for file in files
        for line, name in imported(file)
        if is_within(name, ours) and not is_within(name, ALLOWED[importer])
    ]
    assert forbidden == []


def test_nobody_imports_util_misc() -> None:
    """It is the published name for users; the project knows where things are. engine holds it as `utils`, and
    the benchmarks' jobs also run in the published tree, which knows no other name."""
    files = set(SOURCES) - {"engine.py", "benchmarks/jobs.py", "benchmarks/scale.py"}
    found = [f"{f}:{line}" for f in files for line, name in imported(f) if is_within(name, ("util.misc",))]
    assert found == []


def test_only_scripts_import_main() -> None:
    scripts = ("main", "hubconf")
    importers = {file for file in SOURCES for _, name in imported(file) if is_within(name, scripts)}
    assert not [file for file in importers if file.startswith(PACKAGES) or file == "engine.py"]


# --- Habits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", SOURCES)
def test_public_names_have_docstrings(file: str) -> None:
    """The module, and its functions and classes that do not begin with an underscore."""
    tree = syntax(file)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    named = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    missing = [f"{node.name}, line {node.lineno}" for node in named if not ast.get_docstring(node)]
    if tree.body and not ast.get_docstring(tree):
        missing.append("the module itself")
    assert missing == []


HELP = """
import runpy, sys
started = set(sys.modules)
module = sys.argv[1]
sys.argv = [module, *sys.argv[2:]]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as end:
    loaded = {name for name in set(sys.modules) - started if not name.startswith("_")}
    print(len(loaded))
    print(*sorted({name.partition(".")[0] for name in loaded} - sys.stdlib_module_names))
    sys.exit(end.code)
"""


@pytest.mark.parametrize(
    ("module", "flag"),
    [
        ("main", "--coco_path"),
        ("predict", "--attention"),
        ("export", "--with_mask"),
        ("tools.app", "--max_megabytes"),
        ("tools.convert_hf to-hf", "--dilation"),
    ],
)
def test_help_loads_little(module: str, flag: str) -> None:
    """Nothing that has to be installed, and of the rest so little that the answer comes at once."""
    answer = python("-c", HELP, *module.split(), "--help")
    assert answer.returncode == 0, answer.stderr
    *text, count, packages = answer.stdout.splitlines()
    assert flag in "".join(text)
    ours = {name.partition(".")[0] for name in MODULES}
    assert set(packages.split()) <= ours
    assert int(count) < 150, "about 50 are enough"
