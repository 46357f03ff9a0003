#!/usr/bin/env bash
# Lays detectron2 0.6, as pure Python, into a folder of its own, for the tests of d2/:
#
#     export DETECTRON2_PATH=$(tests/d2/setup.sh [FOLDER [PYTHON]])
#
# It says the folder, by default one in the user's cache. PYTHON, by default .venv/bin/python, is one that has
# torch; nothing is installed into it. The archive is not detectron2's own release, which is on no package
# index: its files equal those of the tag v0.6, and its hash is pinned. Its C++ extension is not built: a stub
# stands in for it. A folder that is already set up is left as it is.
set -euo pipefail
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/detr-tests/detectron2-0.6}
python=${2:-$(dirname "$0")/../../.venv/bin/python}
echo "$folder"
[[ -e $folder/ready ]] && exit 0

pip() { "$python" -m pip --quiet --disable-pip-version-check "$@" >&2; }

mkdir -p "$folder/archive"
cat >"$folder/pinned.txt" <<'END'
pb1-detectron2==0.6 --hash=sha256:5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29
END
pip download --no-deps --no-build-isolation --no-binary :all: --require-hashes \
  -r "$folder/pinned.txt" -d "$folder/archive"
tar -xzf "$folder"/archive/*.tar.gz -C "$folder" --strip-components=1 --wildcards '*/detectron2/*'
# Without their own requirements, so that no second numpy or Pillow comes before the environment's.
pip install --no-deps --target "$folder" --upgrade fvcore iopath portalocker omegaconf \
  'antlr4-python3-runtime==4.9.*' hydra-core yacs termcolor tabulate shapely cloudpickle PyYAML

cat >"$folder/detectron2/_C.py" <<'END'
"""Stands in for the C++ extension, which is not built; this much is asked of it when a run starts."""


def get_compiler_version():
    return "not built"


def get_cuda_version():
    return "not built"


def has_cuda():
    return False
END
# Read by Python at its start: detectron2 0.6 asks Pillow for a name that it has dropped.
cat >"$folder/sitecustomize.py" <<'END'
from PIL import Image

if not hasattr(Image, "LINEAR"):
    Image.LINEAR = Image.Resampling.BILINEAR
END
touch "$folder/ready"
