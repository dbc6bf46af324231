"""`siamdetr label MODEL IMAGES -o DIR --to FORMAT`: write pre-labels for a labelling tool.

With --next, only for the images that are worth labelling next.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siamdetr.cli import options

if TYPE_CHECKING:
    from siamdetr.api import Model, SiamDETR
    from siamdetr.inference.predict_files import Failed
    from siamdetr.labelling.bands import Bands
    from siamdetr.labelling.prelabels import Prelabel


def label(
    model: options.ModelPath,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write; new or empty.")],
    to: Annotated[str, typer.Option("--to", help="coco, yolo, voc, label-studio or cvat.")] = "coco",
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Labelled images that the thresholds are chosen on; default: the run's."),
    ] = None,
    split: options.Split = None,
    data_format: options.Format = "auto",
    sure: Annotated[
        float | None, typer.Option("--sure", min=0.0, max=1.0, help="Least score of a box that needs no second look.")
    ] = None,
    look: Annotated[
        float | None, typer.Option("--look", min=0.0, max=1.0, help="Least score of a box that is written at all.")
    ] = None,
    objects: Annotated[
        bool, typer.Option("--objects", help="Boxes without classes: every box is an 'object'.")
    ] = False,
    next_images: Annotated[
        int | None, typer.Option("--next", min=1, help="Only the N images that are worth labelling next.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at a time.")] = 8,
    device: options.Device = "auto",
    backend: options.Backend = None,
) -> None:
    """Write pre-labels in bands: sure, to look at, and skipped. Images without boxes are kept."""
    from siamdetr.cli.console import console, progress
    from siamdetr.cli.usage.inputs import image_files
    from siamdetr.cli.usage.model import open_model
    from siamdetr.labelling.folder import check_format, count_bands, write_prelabels
    from siamdetr.labelling.prelabels import Prelabel, classes_of, prelabel
    from siamdetr.system.outputs import Read, Written, check_empty, check_outputs

    check_format(to)
    check_empty(output)
    files = image_files(images)
    check_outputs([Read("IMAGES", path) for path in images], folders=[Written("-o", output)])
    opened = open_model(model, device=device, backend=backend)
    bands = _bands(opened, model, data, split, data_format, sure=sure, look=look)
    with progress("label") as update:
        found = list(prelabel(opened, files, bands, batch_size=batch_size, progress=update, objects=objects))
    prelabels = [one for one in found if isinstance(one, Prelabel)]
    if next_images is not None:
        prelabels = _choose(opened, model, prelabels, next_images)
    main = write_prelabels(output, prelabels, classes_of(opened, objects=objects), to=to)
    if next_images is not None and prelabels:
        _save_contact_sheet(output / "contact-sheet.jpg", prelabels)
    counts = count_bands(prelabels)
    console.print(f"Bands: sure from {bands.sure:.3f}, look from {bands.look:.3f}", markup=False)
    console.print(", ".join(f"{number:,} {what}" for what, number in sorted(counts.items())), markup=False)
    console.print(f"{len(prelabels)} images: labels in {main}, a table in {output / 'prelabels.csv'}", markup=False)
    _name_failed([one for one in found if not isinstance(one, Prelabel)])


def _bands(
    opened: Model | SiamDETR,
    model: Path,
    data: Path | None,
    split: str | None,
    data_format: str,
    *,
    sure: float | None,
    look: float | None,
) -> Bands:
    """The given thresholds; others from labelled images, from the model, or the defaults.

    Sure boxes start at the threshold that `val --threshold` has stored, unless --data is given.
    """
    from siamdetr.cli.console import console, progress
    from siamdetr.data.readers.recognise import open_dataset
    from siamdetr.evaluation.coco import detect
    from siamdetr.evaluation.matched import match_results
    from siamdetr.evaluation.thresholds import threshold_curves
    from siamdetr.labelling.bands import Bands, choose_bands
    from siamdetr.training.run_folder import validation_part

    chosen = Bands()
    if sure is None or look is None:
        index = validation_part(model) if data is None else open_dataset(data, format=data_format, split=split)
        if index is not None:
            with progress("thresholds") as update:
                scorer = detect(opened, index, progress=update)
            chosen = choose_bands(threshold_curves(match_results(scorer.results(), scorer.index))[0])
        else:
            console.print("No labelled images to choose thresholds on: give --data, or --sure and --look", markup=False)
    if data is None and sure is None and opened.threshold_from:
        console.print(f"Sure from the model's own threshold: {opened.threshold_from}", markup=False, soft_wrap=True)
        chosen = chosen.with_sure(opened.threshold)
    upper = chosen.sure if sure is None else sure
    return Bands(sure=upper, look=min(chosen.look, upper) if look is None else look)


def _choose(opened: Model | SiamDETR, model: Path, prelabels: list[Prelabel], count: int) -> list[Prelabel]:
    """The images that are worth labelling next, best first, apart from those of the training."""
    from siamdetr.api import SiamDETR
    from siamdetr.cli.console import progress
    from siamdetr.labelling.next_images import next_images
    from siamdetr.training.run_folder import training_part

    if not isinstance(opened, SiamDETR):
        raise ValueError("--next: images are compared by the encoder's features, which need a run or .safetensors file")
    known = training_part(model)
    seen = [] if known is None else [known.path(i) for i in range(len(known)) if known.path(i).is_file()]
    with progress("compare") as update:
        return next_images(opened.predictor, prelabels, count, labelled=seen, progress=update)


def _save_contact_sheet(path: Path, prelabels: list[Prelabel]) -> None:
    """Save a contact sheet of the images, the most useful first."""
    import io

    from siamdetr.images.open import open_untrusted
    from siamdetr.labelling.contact_sheet import contact_sheet
    from siamdetr.system.atomic_file import atomic_bytes

    pictures = [(open_untrusted(one.source, at_least=200), f"{n}. {one.name}") for n, one in enumerate(prelabels, 1)]
    file = io.BytesIO()
    contact_sheet(pictures).save(file, "JPEG", quality=88)
    atomic_bytes(path, file.getvalue())


def _name_failed(failed: list[Failed]) -> None:
    """Name the images that could not be used.

    Raises:
        typer.Exit: there are such images; the code is 1.
    """
    from siamdetr.cli.console import console

    for one in failed:
        console.print(one.reason, markup=False, soft_wrap=True)
    if failed:
        console.print(f"{len(failed)} images could not be used and have no labels", style="bold red")
        raise typer.Exit(1)
