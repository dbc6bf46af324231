"""`siamdetr convert`: read checkpoints of other programs, and write folders for transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from siamdetr.official.placement import Coverage


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="An official .pth file, a folder of transformers' save_pretrained, hf:ORG/NAME; with --to, a model of ours.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The .safetensors file to write; with --to hf the folder.")
    ],
    family: Annotated[
        str | None,
        typer.Option(
            "--family",
            help="Of a .pth file: detr, conditional-detr, dab-detr, dn-detr, deformable-detr, dab-deformable-detr, "
            "dn-deformable-detr, dino, rtdetr, siamese-detr, up-detr or detreg.",
        ),
    ] = None,
    arguments: Annotated[
        list[str],
        typer.Option("--argument", metavar="NAME=VALUE", help="An official option, where the file does not say it."),
    ] = [],  # noqa: B006 - typer copies it
    classes: Annotated[
        Path | None, typer.Option("--classes", help="A text file of class names, a line each, in label order.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="hf", help="Write SOURCE for Hugging Face's transformers.")
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="ORG/NAME", help="With --to hf: upload the folder to the hub.")
    ] = None,
) -> None:
    """Convert a checkpoint of another program into a model file, or a model file into one of transformers.

    Every tensor is accounted for; no code in the checkpoint is run.
    """
    from siamdetr.cli.console import console
    from siamdetr.official.huggingface.repository import is_huggingface

    _check_outputs(source, output, classes, to_folder=to is not None)
    _check_options(to=to, push=push, family=family, arguments=arguments, classes=classes)
    names = None if classes is None else [line for line in classes.read_text(encoding="utf-8").splitlines() if line]
    if to is not None:
        _export(source, output, push)
    elif is_huggingface(source):
        from siamdetr.official.huggingface.read import convert_huggingface

        if family is not None or arguments:
            raise typer.BadParameter(f"--family and --argument are for .pth files; {source} says itself what it is")
        _explain(convert_huggingface(source, output=output, class_names=names))
        console.print(f"written: {output}", markup=False)
    else:
        from siamdetr.official.convert import IMPORTERS, convert_file

        if family is None:
            raise typer.BadParameter(f"{source} needs --family, one of {', '.join(IMPORTERS)}")
        _explain(convert_file(source, family=family, arguments=_parse(arguments), output=output, class_names=names))
        console.print(f"written: {output}", markup=False)


def _check_outputs(source: str, output: Path, classes: Path | None, *, to_folder: bool) -> None:
    from siamdetr.system.outputs import Read, Written, check_outputs, model_reads

    names = ("config.json", "model.safetensors", "preprocessor_config.json")
    inputs = [*model_reads("SOURCE", Path(source)), *([] if classes is None else [Read("--classes", classes)])]
    check_outputs(
        inputs, files=[Written("-o", output / name) for name in names] if to_folder else [Written("-o", output)]
    )


def _check_options(
    *, to: str | None, push: str | None, family: str | None, arguments: list[str], classes: Path | None
) -> None:
    if to not in (None, "hf"):
        raise typer.BadParameter(f"--to got '{to}', expected hf; for ONNX and TensorRT: siamdetr export")
    if push is not None and to is None:
        raise typer.BadParameter("--push is for --to hf")
    if to is not None and (family is not None or arguments or classes is not None):
        raise typer.BadParameter("--to hf takes a model of ours, without --family, --argument and --classes")


def _export(source: str, output: Path, push: str | None) -> None:
    from siamdetr.cli.console import console
    from siamdetr.model_file import load_model
    from siamdetr.official.huggingface.repository import send
    from siamdetr.official.huggingface.write import export_huggingface

    detector, metadata = load_model(source)
    for path in export_huggingface(detector, metadata, output):
        console.print(f"written: {path}", markup=False)
    if push is not None:
        console.print(f"sent: {send(output, push)}", markup=False)


def _explain(coverage: Coverage) -> None:
    from siamdetr.cli.console import console

    console.print(f"used: {len(coverage.used)} tensors", markup=False)
    for name, reason in coverage.left_aside.items():
        console.print(f"left aside: {name}: {reason}", markup=False)
    for name, reason in coverage.missing.items():
        console.print(f"not in the file, starts afresh: {name}: {reason}", markup=False)
    if coverage.ignored_options:
        console.print(f"options that say nothing about the model: {', '.join(coverage.ignored_options)}", markup=False)


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
