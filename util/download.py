"""Files from the network: fetched once into torch.hub's cache, whole, verified by the hash in their name."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

import torch

from util.errors import UserError

# name-<first digits of the SHA-256>.pth; eight digits without a letter are a date
HASH_IN_NAME = re.compile(r"-(?=[0-9]*[a-f])([0-9a-f]{8,64})\.")


def fetch(url: str, check: Callable[[Path], None] = lambda path: None) -> Path:
    """Bring a file into torch.hub's cache, unless it is there -> its path.

    A name that holds a hash is the file's name in the cache, as torch.hub has it, and the hash is verified.
    Others lie in a folder for their URL: every run calls its file checkpoint.pth.

    Args:
        url: http(s).
        check: raises UserError for a file that must not stay in the cache.

    Raises:
        UserError: no network, no such file, or another hash than its name says.
    """
    name = os.path.basename(urlparse(url).path)
    if not name:
        raise UserError(f"{url}: names no file")
    digits = HASH_IN_NAME.search(name)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if digits is None:
        folder = folder / hashlib.sha256(url.encode()).hexdigest()[:12]
    path = folder / name
    if path.is_file():
        if digits and not _sha256(path).startswith(digits[1]):
            raise UserError(
                f"{path}: its hash is not the one in its name; delete the file and fetch it again"
            )
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as scratch:
            fetched = Path(scratch) / name
            torch.hub.download_url_to_file(url, str(fetched), progress=True)
            found = _sha256(fetched)
            if digits and not found.startswith(digits[1]):
                raise UserError(f"{url}: what was fetched has the hash {found[:8]}, not the one in its name")
            check(fetched)  # a connection that breaks leaves a shorter file, and torch.hub does not mind
            os.replace(fetched, path)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(
            f"{url}: could not be downloaded ({error}); fetch it elsewhere and pass its path, or place "
            f"it in {folder}"
        ) from error
    return path


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
