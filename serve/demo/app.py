"""The demo: a page on this machine where a click on a box shows where the decoder looked.

Gradio carries uploads, the queue and the page; the picture itself, its boxes and its attention are one component of
ours (`page/`), so that moving a threshold needs no server. It listens on the loopback address alone, opens no address
and no path that a client names, and keeps uploads for an hour at most.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from siamdetr.errors import ImageError, ServeError
from siamdetr.serve.demo.answers import Answers, NamedModel, thumbnail
from siamdetr.serve.demo.example_images import MOST_BYTES, Example, open_upload
from siamdetr.serve.demo.loopback_guard import LoopbackGuard

HOST = "127.0.0.1"
QUEUE_SIZE = 16
CONCURRENCY = 2
_PAGE = Path(__file__).parent / "page"
_SCRIPTS = ("heat.js", "stage.js", "viewer.js")
_ROOT_PATH = re.compile(r"(https?://[^/?#\s@]+)?(/[A-Za-z0-9._~-]+)*")
_HOUR = 3600  # seconds


@dataclass(frozen=True)
class Served:
    """A demo that is running."""

    url: str  # on this machine
    blocks: gr.Blocks

    def wait(self) -> None:
        """Wait until Ctrl-C."""
        self.blocks.block_thread()

    def stop(self) -> None:
        """Close the server."""
        self.blocks.close()


def build_demo(models: Sequence[NamedModel], examples: Sequence[Example]) -> gr.Blocks:
    """The page of these models; the first example is shown when it opens."""
    answers, serial = Answers(models), itertools.count(1)
    shown = [(example, _thumbnail(example)) for example in examples]

    def answer(name: str, open_picture: Callable[[], Image.Image]) -> dict[str, Any]:
        try:
            return {"serial": next(serial), "error": None, **answers.detect(open_picture(), name)}
        except ValueError as error:  # of which ImageError is one
            return {"serial": next(serial), "error": str(error)}

    def opened(data: bytes | None) -> dict[str, Any]:
        return answer("your picture", lambda: open_upload(data or b""))

    def picked(event: gr.EventData) -> dict[str, Any]:
        number = getattr(event, "example", None)
        if not isinstance(number, int) or not 0 <= number < len(shown):
            return {"serial": next(serial), "error": "There is no such example."}
        return answer(shown[number][0].name, shown[number][0].open)

    def look(question: Any) -> dict[str, Any]:
        try:
            return answers.look(question if isinstance(question, dict) else {})
        except ValueError as error:
            return {"error": str(error)}

    blocks: gr.Blocks = gr.Blocks(title="siamdetr demo", analytics_enabled=False, delete_cache=(_HOUR, _HOUR))
    with blocks:
        viewer = gr.HTML(
            value=None,
            html_template=(_PAGE / "viewer.html").read_text(encoding="utf-8"),
            js_on_load="\n".join((_PAGE / name).read_text(encoding="utf-8") for name in _SCRIPTS),
            apply_default_css=False,
            server_functions=[look],
            elem_id="siamdetr-viewer",
            examples=[{"name": example.name, "url": url} for example, url in shown],
            mostBytes=MOST_BYTES,
        )
        upload = gr.UploadButton(
            "Open picture",
            type="binary",
            file_types=[".jpg", ".jpeg", ".png", ".webp", ".bmp"],
            elem_id="siamdetr-upload",
        )
        upload.upload(opened, upload, viewer, show_progress="hidden", api_visibility="private")
        viewer.select(
            picked, None, viewer, show_progress="hidden", api_visibility="private", trigger_mode="always_last"
        )
    blocks.queue(max_size=QUEUE_SIZE, default_concurrency_limit=CONCURRENCY, api_open=False)
    return blocks


def serve_demo(blocks: gr.Blocks, *, port: int | None = None, root_path: str = "") -> Served:
    """Start the server, on the loopback address, for pages of this machine (see `LoopbackGuard`).

    Args:
        blocks: of `build_demo`.
        port: None: the first free one from 7860.
        root_path: the path ("/demo") or whole address under which a proxy shows the page; "": there is none.
    Raises:
        OSError: the port is taken.
        ServeError: `root_path` is neither a path nor an address.
    """
    check_root_path(root_path)
    if port is not None:
        _check_free(port)
    os.environ.pop("GRADIO_ALLOWED_PATHS", None)  # no file of this machine is served, whatever the shell says
    app, _, _ = blocks.launch(
        server_name=HOST,
        server_port=port,
        root_path=root_path or None,
        share=False,
        show_error=False,
        allowed_paths=[],
        max_file_size=MOST_BYTES,
        max_threads=8,
        state_session_capacity=64,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        prevent_thread_lock=True,
        quiet=True,
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=(_PAGE / "viewer.css").read_text(encoding="utf-8"),
    )
    # Outside everything that Gradio puts around its pages, since its own CORS answers before what is given to it would.
    app.middleware_stack = LoopbackGuard(app.middleware_stack or app.build_middleware_stack(), root_path=root_path)
    return Served(f"http://{HOST}:{blocks.server_port}/", blocks)


def check_root_path(root_path: str) -> None:
    """Check that `root_path` is empty, a path or an address.

    Raises:
        ServeError: it is not.
    """
    if not _ROOT_PATH.fullmatch(root_path):
        raise ServeError(f"--root-path: got '{root_path}', expected /PATH or https://HOST/PATH, without a / at its end")


def _check_free(port: int) -> None:
    """Check that a port is free, with a better message than Gradio's."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise OSError(f"--port {port}: {error.strerror}; choose another, or leave it out") from None


def _thumbnail(example: Example) -> str:
    try:
        return thumbnail(example.open())
    except ImageError:
        return ""
