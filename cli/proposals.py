"""`siamdetr proposals DATA`: compute region proposals for pretraining once, and their recall."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siamdetr.cli import options

if TYPE_CHECKING:
    from siamdetr.data.index import DetectionIndex
    from siamdetr.proposals.methods import Recipe
    from siamdetr.proposals.store import ProposalStore
    from siamdetr.system.parallel import TaskRunner


# An .arrow file may lie beside the images that it is about: no reader of data sets takes it.
_READ_OF_DATA = frozenset({".json", ".yaml", ".yml", ".txt", ".xml", ".csv", ".jpg", ".jpeg", ".png", ".tif", ".tiff"})


def proposals(
    data: Annotated[Path, typer.Argument(help="A data set or a folder of images; labels are not looked at.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file to write; a shard adds its number to the name.")
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="edgeboxes, selective-search, merged, random or objectness-file.")
    ] = "edgeboxes",
    keep: Annotated[int, typer.Option("--keep", min=1, help="Boxes an image at most.")] = 100,
    score: Annotated[
        bool, typer.Option("--score", help="Print the recall against the labels; without -o nothing is kept.")
    ] = False,
    edge_model: Annotated[
        Path | None, typer.Option("--edge-model", help="Structured forests for EdgeBoxes (OpenCV's model.yml.gz).")
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option("--boxes", help="objectness-file: scored boxes, in COCO's results format.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Only part I of N, from 0; else as torchrun or SLURM say."),
    ] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help="Compute on a Ray cluster: auto, ray://…, or local.")
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes; without: one a core.")] = None,
    split: options.Split = None,
    data_format: options.Format = "auto",
) -> None:
    """Compute region proposals into a file for `siamdetr train --proposals`; an interrupted run continues."""
    from siamdetr.data.readers.recognise import open_dataset
    from siamdetr.proposals.shards import find_shard
    from siamdetr.system.outputs import Read, Written, check_outputs
    from siamdetr.system.parallel import TaskRunner

    if output is None and not score:
        raise typer.BadParameter("give the file to write with -o, or --score to print the recall alone")
    part = find_shard(shard)
    if output is not None:
        given = {"DATA": data, "--edge-model": edge_model, "--boxes": boxes}
        reads = [Read(name, path, _READ_OF_DATA) for name, path in given.items() if path is not None]
        check_outputs(reads, files=[Written("-o", part.name(output))])
    recipe = _recipe(method, keep, edge_model, boxes)
    index = part.of(open_dataset(data, format=data_format, split=split))
    engine = TaskRunner("ray" if ray else "processes", workers, ray)
    with tempfile.TemporaryDirectory() as scratch:
        path = part.name(output if output is not None else Path(scratch) / "proposals.arrow")
        store = _compute(index, path, recipe, engine)
        if output is not None:
            _tell(store, path, data)
        if score:
            _score(index, store, data)


def _recipe(method: str, keep: int, edge_model: Path | None, boxes: Path | None) -> Recipe:
    from siamdetr.proposals.edge_map import check_edge_model
    from siamdetr.proposals.methods import METHODS, Recipe

    known = next((name for name in METHODS if name == method), None)
    if known is None:
        raise typer.BadParameter(f"--method got '{method}', expected one of: {', '.join(METHODS)}")
    if (boxes is not None) != (method == "objectness-file"):
        raise typer.BadParameter("--boxes FILE and --method objectness-file go together")
    if boxes is not None and not boxes.is_file():
        raise typer.BadParameter(f"--boxes {boxes}: no such file")
    if edge_model is not None:
        check_edge_model(edge_model)
    return Recipe(known, keep, edge_model, boxes)


def _compute(index: DetectionIndex, path: Path, recipe: Recipe, engine: TaskRunner) -> ProposalStore:
    from siamdetr.cli.console import progress
    from siamdetr.errors import DataError
    from siamdetr.proposals.compute import ProposalStore, compute_proposals
    from siamdetr.proposals.from_objectness import read_objectness

    there = ProposalStore.open(path) if path.exists() else None
    if there is not None and len(there) and there.recipe != recipe.text:
        raise DataError(
            f"{path}: has proposals of {len(there):,} images, made otherwise ({there.recipe}; asked for: {recipe.text}); give another "
            "file with -o, or delete it"
        )
    given = read_objectness(recipe.boxes_file, index) if recipe.boxes_file is not None else None
    with progress("proposals") as update:
        return compute_proposals(index, path, recipe=recipe, engine=engine, given=given, progress=update)


def _tell(store: ProposalStore, path: Path, data: Path) -> None:
    from siamdetr.cli.console import bold, console

    sharpened, centred = store.fallback_counts()
    console.print(
        f"{bold(path)}: {len(store):,} images, {store.num_boxes:,} boxes, {path.stat().st_size / 2**20:.1f} MiB; "
        f"{sharpened:,} images found boxes only after sharpening, {centred:,} have the centred box",
        soft_wrap=True,
    )
    console.print(f"Next: siamdetr train --data {data} --proposals {path}", markup=False, soft_wrap=True)


def _score(index: DetectionIndex, store: ProposalStore, data: Path) -> None:
    from rich.table import Table

    from siamdetr.cli.console import bold, console, progress
    from siamdetr.proposals.recall import proposal_recall

    with progress("score") as update:
        recall = proposal_recall(index, store, progress=update)
    table = Table("proposals an image", "average recall, IoU .5:.95", "recall at IoU .5", box=None)
    for count, value in recall.average.items():
        table.add_row(str(count), f"{value:.3f}", f"{recall.at_50[count]:.3f}")
    console.print(f"\n{bold(data)}: {recall.num_boxes:,} labelled boxes of {len(index):,} images, crowds left out")
    console.print(table)
    if recall.missing:
        console.print(f"{recall.missing:,} images have no proposals; their boxes count as not found")
