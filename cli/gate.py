"""`siamdetr gate A B --data DATA`: compare two files, ours or other programs', box by box and by AP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siamdetr.cli import options

if TYPE_CHECKING:
    from siamdetr.data.index import DetectionIndex
    from siamdetr.export.gate.files import NamedFile

_SPEC_HELP = "How it is fed and read, if another program wrote it: rf-detr, rt-detr, transformers-detr, transformers-rt-detr, ultralytics, or a YAML file."


def gate(
    a: Annotated[Path, typer.Argument(help="The reference: any file of ours, or any ONNX file.")],
    b: Annotated[Path, typer.Argument(help="The file that is judged.")],
    data: options.Data,
    split: options.Split = None,
    data_format: options.Format = "auto",
    images: Annotated[int, typer.Option("--images", min=1, help="How many images of the data are taken.")] = 100,
    precision: Annotated[
        str, typer.Option("--precision", help="Whose tolerances apply: fp32, fp16, bf16 or int8.")
    ] = "fp16",
    spec_a: Annotated[str | None, typer.Option("--spec-a", help=_SPEC_HELP)] = None,
    spec_b: Annotated[str | None, typer.Option("--spec-b", help=_SPEC_HELP)] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write.")] = Path("gate"),
    device: options.Device = "cpu",
) -> None:
    """Compare file B with A on the same images: every box, and AP where there are labels.

    Exits with 1 if B is out of tolerance.
    """
    from siamdetr.cli.console import console, progress
    from siamdetr.data.readers.recognise import find_source
    from siamdetr.errors import ExportError
    from siamdetr.export.gate.checks import TOLERANCES
    from siamdetr.export.gate.file_report import sentence, write_file_report
    from siamdetr.export.gate.files import compare_files
    from siamdetr.system.outputs import Read, Written, check_outputs, model_reads

    if precision not in TOLERANCES:
        raise ExportError(f"--precision {precision}: expected {', '.join(TOLERANCES)}")
    check_outputs([*model_reads("A", a), *model_reads("B", b), Read("--data", data)], folders=[Written("-o", output)])
    source = find_source(data, data_format)
    index = source.open(split or source.first_split(("val", "test")))
    names = _names(a, b)
    files = [
        _open(path, name, spec, flag, index, device)
        for path, name, spec, flag in ((a, names[0], spec_a, "--spec-a"), (b, names[1], spec_b, "--spec-b"))
    ]
    chosen = index.subset(range(min(images, len(index))))
    with progress("compare") as update:
        report = compare_files(
            files[0],
            files[1],
            [chosen.path(i) for i in range(len(chosen))],
            precision=precision,
            truth=chosen if chosen.num_boxes else None,
            progress=update,
        )
    path = write_file_report(output, report, files[0], files[1])
    console.print(sentence(report), markup=False, soft_wrap=True)
    for failure in report.failures():
        console.print(f"  {failure}", markup=False, soft_wrap=True, style="red")
    console.print(f"Report: {path}", markup=False, soft_wrap=True)
    raise typer.Exit(0 if report.passed else 1)


def _names(a: Path, b: Path) -> tuple[str, str]:
    """The names of the files in the report, with their folders if the names are the same."""
    return (a.name, b.name) if a.name != b.name else (str(a), str(b))


def _open(path: Path, name: str, spec: str | None, flag: str, index: DetectionIndex, device: str) -> NamedFile:
    """Open a file of ours, or a file of another program by its declaration.

    Raises:
        ExportError: an ONNX file of another program without a declaration; the text names the flag.
    """
    from siamdetr.api import kind_of, load
    from siamdetr.errors import ExportError
    from siamdetr.export.declaration import KNOWN, read_declaration
    from siamdetr.export.foreign import ForeignDetector
    from siamdetr.export.gate.files import NamedFile

    if spec is not None:
        foreign = ForeignDetector(
            path,
            read_declaration(spec),
            class_names=index.class_names,
            category_ids=index.category_ids,
            device=device,
        )
        return NamedFile(name, foreign, foreign.runtime)
    try:
        opened = load(path, device=device)
    except ExportError as error:
        if kind_of(path) == "onnx" and "not one that siamdetr exported" in str(error):
            raise ExportError(
                f"{path}: another program wrote it, so say how it is fed and read: {flag} with {', '.join(KNOWN)}, or a YAML file "
                "(docs/gate.md lists its keys)"
            ) from error
        raise
    return NamedFile(name, opened, str(getattr(opened, "runtime", "PyTorch")))
