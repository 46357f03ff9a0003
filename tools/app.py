"""A page in the browser to try a model on: drop a picture, see what is found, and where the model looks.

  python -m tools.app --resume outputs/mine/checkpoint.pth
  python -m tools.app --resume detr_resnet50_panoptic --port 8000

It shows boxes, masks or panoptic segments, whatever the model gives; a slider for the threshold and a choice
of classes act without running the model again; a click on an object shows the attention it was found with, a
click where no object is shows where the encoder looks from there. The numbers, and the JSON file to download,
are those of predict.py.

The page works without a network. It is served to this machine alone unless --host says otherwise: everybody
who can reach the machine can use it then. Pictures stay in memory and in a temporary folder until an hour has
passed or the server ends. It needs gradio: pip install -r requirements-app.txt
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from util.command_line import RecipeParser, at_least, trained_model_flags
from util.errors import UserError, exit_status

if TYPE_CHECKING:
    import gradio

SESSIONS = 32  # visitors whose pictures are kept; the one who came first is forgotten first
CSS = "#drawn img, #attention img { max-height: 75vh; }"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def get_args_parser() -> RecipeParser:
    """Every flag."""
    parser = RecipeParser("python -m tools.app", description=__doc__)
    flag = parser.add_argument
    flag("--resume", required=True, metavar="PATH|URL|NAME", help="checkpoint, or a torch.hub entry point")
    flag("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    flag("--port", default=7860, type=at_least(1, 65536), help="port to listen on (default: %(default)s)")
    flag("--max_megabytes", default=20.0, type=at_least(0.001), help="of a file (default: %(default)g)")
    flag("--max_megapixels", default=40.0, type=at_least(0.001), help="of a picture (default: %(default)g)")
    trained_model_flags(flag)
    return parser


def main(args: argparse.Namespace) -> None:
    """Load the model and serve the page until somebody ends it.

    Raises:
        UserError: gradio is missing, the port is taken, or there is no such model.
    """
    check_free(args.host, args.port)
    prepare_gradio(args.host)
    from inference.trained import load_trained
    from tools.app_look import Limits, warm_up

    names = ("dilation", "nheads", "eval_scale", "max_size", "white_level")
    settings = {name: getattr(args, name) for name in names}
    trained = load_trained(args.resume, args.device, **settings)
    warm_up(trained)
    with tempfile.TemporaryDirectory(prefix="detr-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        from tools.app_page import build_page

        page = build_page(trained, Limits(args.max_megabytes, args.max_megapixels))
        try:
            address = serve(page, args.host, args.port, args.max_megabytes)
            print(f"{args.resume}: {address} (Ctrl+C ends it)", flush=True)
            if args.host not in LOOPBACK:
                print(f"--host {args.host}: whoever reaches this machine can use it", file=sys.stderr)
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def serve(page: gradio.Blocks, host: str, port: int, megabytes: float) -> str:
    """Serve the page in threads of its own -> its address.

    Args:
        megabytes: larger uploads are refused while they arrive.

    Raises:
        UserError: the port is taken.
    """
    import gradio as gr

    # Fonts that every machine has: gradio's may come from the network.
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            max_file_size=round(2**20 * megabytes),
            state_session_capacity=SESSIONS,
            theme=theme,
            css=CSS,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            num_workers=0,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: cannot be listened on ({error})") from error
    return address


def prepare_gradio(host: str) -> None:
    """Import gradio, with its reports to its makers turned off.

    Raises:
        UserError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    around = [os.environ.get("no_proxy") or os.environ.get("NO_PROXY", ""), *LOOPBACK, host]
    os.environ["no_proxy"] = ",".join(filter(None, around))  # gradio asks its own server whether it is there
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError("tools.app needs gradio: pip install -r requirements-app.txt") from error


def check_free(host: str, port: int) -> None:
    """Make sure that a server can listen here, before a model is loaded for it.

    Raises:
        UserError: it cannot.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            if os.name == "posix":  # or a server that ended a moment ago would be in the way
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}; pass another") from error


def run(argv: Sequence[str] | None = None) -> int:
    """The command line -> its exit status."""
    args = get_args_parser().parse_args(argv)
    end = signal.SIGTERM
    before = signal.signal(end, lambda *_: sys.exit(128 + end))  # so that nothing is left behind
    try:
        return exit_status(lambda: main(args), args.debug)
    finally:
        signal.signal(end, before)


if __name__ == "__main__":
    sys.exit(run())
