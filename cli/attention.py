"""`siamdetr attention MODEL IMAGE -o fig.png`: the attention of a detector as a figure for print."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Annotated

import typer

from siamdetr.cli import options

_FORMATS = {".png", ".pdf", ".svg", ".jpg"}


def attention(
    model: options.ModelPath,
    image: Annotated[Path, typer.Argument(help="An image.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The figure: .png, .pdf, .svg or .jpg.")] = Path(
        "attention.png"
    ),
    boxes: Annotated[int, typer.Option("--boxes", min=1, max=20, help="How many boxes, best first.")] = 3,
    layer: Annotated[int | None, typer.Option("--layer", min=1, help="Layer; default: the mean of all.")] = None,
    heads: Annotated[bool, typer.Option("--heads", help="One row per head, instead of their mean.")] = False,
    point: Annotated[
        str | None,
        typer.Option("--point", metavar="X,Y", help="The encoder's self-attention of this pixel, instead of boxes."),
    ] = None,
    dpi: Annotated[int, typer.Option("--dpi", min=50, max=1200, help="Dots per inch of .png and .jpg.")] = 300,
    device: options.Device = "auto",
) -> None:
    """Draw the decoder's attention for the best boxes, or the encoder's attention for a point."""
    if output.suffix.lower() not in _FORMATS:
        raise typer.BadParameter(
            f"got {output.name}, expected a name in {', '.join(sorted(_FORMATS))}", param_hint="-o"
        )
    from siamdetr.api import load
    from siamdetr.cli.console import console
    from siamdetr.drawing.attention import FigureOptions, attention_figure
    from siamdetr.images.preprocessing import load_image
    from siamdetr.inference.inspect_any import inspect_image
    from siamdetr.system.atomic_file import atomic_write
    from siamdetr.system.outputs import Read, Written, check_outputs, model_reads

    check_outputs([*model_reads("MODEL", model), Read("IMAGE", image)], files=[Written("-o", output)])
    opened, picture = load(model, device=device), load_image(image)
    wanted = FigureOptions(boxes=boxes, layer=layer, heads=heads, point=_fractions(point, picture.size))
    figure = attention_figure(picture, inspect_image(opened, picture), opened.class_names, wanted)
    output.parent.mkdir(parents=True, exist_ok=True)
    content = BytesIO()  # matplotlib writes to a real file or to this
    figure.savefig(content, format=output.suffix[1:].lower(), dpi=dpi)
    atomic_write(output, lambda file: file.write(content.getvalue()))
    console.print(f"attention: {output}", markup=False)


def _fractions(point: str | None, size: tuple[int, int]) -> tuple[float, float] | None:
    """`"120,80"` pixels of an image of (width, height) → fractions.

    Raises:
        typer.BadParameter: not two numbers, or outside the image.
    """
    if point is None:
        return None
    try:
        x, y = (float(part) for part in point.split(","))
    except ValueError:
        raise typer.BadParameter(f"got '{point}', expected two pixels such as 120,80", param_hint="--point") from None
    if not (0 <= x <= size[0] and 0 <= y <= size[1]):
        raise typer.BadParameter(
            f"got {point}, expected a pixel of the image, which is {size[0]} × {size[1]}", param_hint="--point"
        )
    return x / size[0], y / size[1]
