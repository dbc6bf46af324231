"""`siamdetr serve MODEL`: an HTTP server over an exported model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from siamdetr.cli import options

if TYPE_CHECKING:
    from siamdetr.api import Backend


def serve(
    model: options.ModelPath,
    host: Annotated[
        str, typer.Option("--host", help="Address; beyond loopback SIAMDETR_SERVE_TOKEN must be set.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes, each with the model.")] = 1,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Cores of one model call.")] = None,
    queue: Annotated[
        int, typer.Option("--queue", min=1, help="Images waiting or running in a process; then 429.")
    ] = 64,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="Images of one size in a model call.")] = 1,
    max_delay: Annotated[float, typer.Option("--max-delay", min=0, help="Milliseconds to wait for a batch.")] = 2.0,
    name: Annotated[str, typer.Option("--name", help="Of the model, under /v2/models.")] = "siamdetr",
    cors_origins: Annotated[
        list[str],
        typer.Option(
            "--cors-origin", metavar="ORIGIN", help="Pages of it may ask, such as https://app.example; again for more."
        ),
    ] = [],  # noqa: B006 - typer copies it
    root_path: Annotated[
        str, typer.Option("--root-path", metavar="PATH", help="Where a proxy shows the server, such as /detector.")
    ] = "",
    device: options.Device = "cpu",
    backend: options.Backend = None,
) -> None:
    """Serve detections over HTTP.

    POST /v1/detect, the Open Inference Protocol under /v2, /metrics, /openapi.json.
    """
    from siamdetr.cli.console import console
    from siamdetr.serve.settings import ServeSettings, token_from_environment

    try:
        from siamdetr.serve.process import serve as run
    except ModuleNotFoundError as error:
        raise ValueError(f"serve: '{error.name}' is not installed; pip install 'siamdetr[serve]'") from None

    settings = ServeSettings(
        host=host,
        port=port,
        workers=workers,
        queue_size=queue,
        max_batch=max_batch,
        max_delay=max_delay / 1000,
        model_name=name,
        token=token_from_environment(),
        cors_origins=tuple(cors_origins),
        root_path=root_path,
    )

    def announce(url: str) -> None:
        console.print(
            f"Serving {model} at {url}; SIGTERM or Ctrl-C ends it after the requests under way.",
            markup=False,
            soft_wrap=True,
        )

    run(
        model,
        settings,
        device=device,
        backend=cast("Backend | None", backend),
        threads=threads,
        listening=announce,
    )
