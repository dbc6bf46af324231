"""`siamdetr demo MODEL…`: a page where a click on a box shows its attention."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from siamdetr.cli import options

_SUFFIXES = (".safetensors", ".onnx", ".engine")


def demo(
    models: Annotated[
        list[Path], typer.Argument(help="Run folders, .safetensors or exported files; several are shown side by side.")
    ],
    examples: Annotated[
        Path | None,
        typer.Option("--examples", help="A folder of images to begin with; default: those of the run's validation."),
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Default: the first free from 7860.")
    ] = None,
    root_path: Annotated[
        str,
        typer.Option(
            "--root-path", metavar="PATH|URL", help="Where a proxy shows the page: /demo or https://HOST/demo."
        ),
    ] = "",
    device: options.Device = "auto",
) -> None:
    """Open a page on this machine: click a box to see its attention. Ctrl-C ends it."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # set before the import, so that Gradio reports nothing
    try:
        from siamdetr.serve.demo.uploads import own_folder

        with _sigterm_raised(), own_folder():
            _serve(models, examples, port, root_path, device)
    except ModuleNotFoundError as error:
        raise ValueError(f"demo: {error.name} is not installed; pip install 'siamdetr[demo]'") from None


@contextmanager
def _sigterm_raised() -> Iterator[None]:
    """SIGTERM raises SystemExit inside the block, so that the folder of uploads is emptied on the way out."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _serve(models: list[Path], examples: Path | None, port: int | None, root_path: str, device: str) -> None:
    from siamdetr.serve.demo.app import build_demo, check_root_path, serve_demo

    check_root_path(root_path)
    from siamdetr.api import load
    from siamdetr.cli.console import console
    from siamdetr.serve.demo.answers import NamedModel
    from siamdetr.serve.demo.example_images import find_examples

    named = [
        NamedModel(name, load(path, device=device))
        for name, path in zip(distinguishing_names(models), models, strict=True)
    ]
    served = serve_demo(build_demo(named, find_examples(examples, models[0])), port=port, root_path=root_path)
    console.print(
        f"demo of {', '.join(one.name for one in named)}: {served.url}  (Ctrl-C ends it)", markup=False, soft_wrap=True
    )
    try:
        served.wait()
    finally:
        served.stop()


def distinguishing_names(paths: list[Path]) -> list[str]:
    """The shortest distinct ends of the paths, without suffixes unless only these differ."""
    whole = [path.resolve() for path in paths]
    short = [path.with_suffix("") if path.suffix in _SUFFIXES else path for path in whole]
    parts = [path.parts[1:] for path in (short if len({*short}) == len({*whole}) else whole)]
    depth = 1
    while len({part[-depth:] for part in parts}) < len({*parts}):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]
