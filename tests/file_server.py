"""A web server on this machine that hands out the files of a folder, for tests of downloads."""

import contextlib
import functools
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest


class FileServer(http.server.ThreadingHTTPServer):
    """Serves a folder at `url`.

    Attributes:
        requested: the paths that were asked for.
        hangs_up: break every connection in the middle of the file.
    """

    def __init__(self, folder: Path):
        self.requested: list[str] = []
        self.hangs_up = False
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.SimpleHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        self.server.requested.append(self.path)
        super().do_GET()

    def copyfile(self, source: IO[bytes], outputfile: IO[bytes]) -> None:  # type: ignore[override]
        content = source.read()
        outputfile.write(content[: len(content) // 2] if self.server.hangs_up else content)

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[FileServer]:
    """A server that runs while the block does."""
    with FileServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def url_without_server() -> str:
    """A URL on this machine at which nobody listens."""
    with socket.socket() as briefly:
        briefly.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{briefly.getsockname()[1]}"


def forbid_network(patch: pytest.MonkeyPatch) -> None:
    """Make every attempt to reach the network a failure of the test."""

    def reached(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked")

    patch.setattr(socket.socket, "connect", reached)
    patch.setattr(socket, "getaddrinfo", reached)
