"""What a file really is that should have been a picture or an annotation file."""

from __future__ import annotations

_BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: git lfs pull fetches it",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"<!doctype html": "a web page, as a download that failed leaves it",
    b"<html": "a web page, as a download that failed leaves it",
}
LONGEST = 64  # bytes that suffice


def what_it_is(data: bytes) -> str:
    """What the first bytes of a file show; '' where they show nothing of the usual mistakes."""
    if not data:
        return "an empty file"
    start = data[:LONGEST].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((said for begin, said in _BEGINNINGS.items() if start.startswith(begin.lower())), "")
