"""`siamdetr convert CHECKPOINT --family NAME -o FILE`: an official checkpoint becomes a model file of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="An official .pth file.")],
    family: Annotated[
        str,
        typer.Option(
            "--family",
            help="detr, conditional-detr, dab-detr, dn-detr, deformable-detr, dab-deformable-detr, dn-deformable-detr, "
            "siamese-detr, up-detr or detreg.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .safetensors file to write.")],
    arguments: Annotated[
        list[str],
        typer.Option("--argument", metavar="NAME=VALUE", help="An official option, where the file does not say it."),
    ] = [],  # noqa: B006 - typer copies it
    classes: Annotated[
        Path | None, typer.Option("--classes", help="A text file of class names, a line each, in label order.")
    ] = None,
) -> None:
    """Read an official checkpoint (safely: no code in it is run), map every weight, and say what became of each."""
    from siamdetr.cli.console import console
    from siamdetr.official.convert import convert_file
    from siamdetr.system.outputs import Read, Written, check_outputs

    inputs = [Read("CHECKPOINT", checkpoint), *([] if classes is None else [Read("--classes", classes)])]
    check_outputs(inputs, files=[Written("-o", output)])
    names = None if classes is None else [line for line in classes.read_text(encoding="utf-8").splitlines() if line]
    coverage = convert_file(checkpoint, family=family, arguments=_parse(arguments), output=output, class_names=names)
    console.print(f"used: {len(coverage.used)} tensors", markup=False)
    for name, reason in coverage.left_aside.items():
        console.print(f"left aside: {name}: {reason}", markup=False)
    for name, reason in coverage.missing.items():
        console.print(f"not in the file, starts afresh: {name}: {reason}", markup=False)
    if coverage.ignored_options:
        console.print(f"options that say nothing about the model: {', '.join(coverage.ignored_options)}", markup=False)
    console.print(f"written: {output}", markup=False)


def _parse(texts: list[str]) -> dict[str, Any]:
    """`["dec_layers=6"]` → `{"dec_layers": 6}`.

    Raises:
        typer.BadParameter: a text without "=".
    """
    import yaml

    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"--argument got '{text}', expected NAME=VALUE, such as dec_layers=6")
        values[name] = yaml.safe_load(value)
    return values
