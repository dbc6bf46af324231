"""`siamdetr predict MODEL IMAGES…`: annotated pictures, and the boxes as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from siamdetr.cli import options

if TYPE_CHECKING:
    from siamdetr.api import Model, SiamDETR
    from siamdetr.inference.predict_files import Failed, Found
    from siamdetr.inference.tiles import Tiling


def predict(
    model: options.ModelPath,
    images: Annotated[
        list[Path],
        typer.Argument(help="Images or folders of them; or videos, addresses of streams, numbers of cameras."),
    ],
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", min=0.0, max=1.0, help="Lowest score of a detection; default: the model's."),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write.")] = Path("predictions"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Where to write the boxes; default: OUTPUT/predictions.json.")
    ] = None,
    save: Annotated[
        list[str] | None,
        typer.Option("--save", help="Also write the boxes as txt (YOLO), csv or coco; may be given again."),
    ] = None,
    tile: Annotated[
        int | None, typer.Option("--tile", min=32, help="Also look at tiles of this side, pixels: for large images.")
    ] = None,
    overlap: Annotated[float, typer.Option("--overlap", help="Of neighbouring tiles, share of their side.")] = 0.2,
    stride: Annotated[int, typer.Option("--stride", min=1, help="Of a video, every how manieth frame.")] = 1,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at a time.")] = 8,
    device: options.Device = "auto",
    backend: options.Backend = None,
    compiled: options.Compile = False,
) -> None:
    """Detect objects in images or videos; write pictures with boxes, and a JSON file (xyxy, pixels).

    An image that cannot be used is named and left out, and the exit code is 1.
    """
    from siamdetr.cli.console import console, progress
    from siamdetr.cli.usage.inputs import image_files, only_videos
    from siamdetr.cli.usage.model import open_model
    from siamdetr.inference.predict_files import predict_files
    from siamdetr.inference.tiles import Tiling
    from siamdetr.reports.prediction_files import outputs_of
    from siamdetr.reports.prediction_pictures import write_pictures
    from siamdetr.system.unique_names import unique_stems

    tiling = None if tile is None else Tiling(tile, overlap)
    if only_videos(images):
        opened = open_model(model, device=device, backend=backend, compiled=compiled)
        _predict_videos(opened, images, output, threshold, tiling, stride=stride, batch_size=batch_size)
        return
    files = image_files(images)
    stems = unique_stems([file.stem for file in files])
    pictures = {file: output / f"{stem}.jpg" for file, stem in zip(files, stems, strict=True)}
    target = json_file or output / "predictions.json"
    formats = list(dict.fromkeys(save or ()))
    _check(model, images, output, pictures, [target, *outputs_of(formats, output, [p.stem for p in pictures.values()])])
    opened = open_model(model, device=device, backend=backend, compiled=compiled)
    run = _Prediction(opened, pictures)
    output.mkdir(parents=True, exist_ok=True)
    results = predict_files(opened, files, threshold=threshold, tiling=tiling, batch_size=batch_size)
    try:
        with progress("predict") as update:
            for done, (result, fault) in enumerate(write_pictures(results, pictures), start=1):
                run.add(result, fault)
                update(done, len(files))
    except BaseException:
        if run.rows:  # what is done is kept, however the rest ended
            run.write(target)
        raise
    run.write(target)
    saved = [target, *(run.write_as(name, output) for name in formats)]
    total = sum(len(row["detections"]) for row in run.rows)
    console.print(
        f"{total} boxes in {len(run.rows)} images: pictures in {output}, boxes in {', '.join(map(str, saved))}",
        markup=False,
        soft_wrap=True,
    )
    if run.failures:
        console.print(f"{len(run.failures)} of {len(files)} images failed:", style="bold red")
        for failure in run.failures:
            console.print(f"  {failure}", markup=False, soft_wrap=True)
        raise typer.Exit(1)


@dataclass
class _Prediction:
    """The pictures and rows of a call, image by image."""

    model: SiamDETR | Model
    pictures: dict[Path, Path]
    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # (H, W) of each image of the rows

    def add(self, result: Found | Failed, fault: str | None) -> None:
        """Note a result, and why its picture could not be drawn."""
        from siamdetr.inference.detection_rows import detection_rows
        from siamdetr.inference.predict_files import Failed

        self.failures += [fault] if fault else []
        if isinstance(result, Failed):
            self.failures.append(result.reason)
            return
        self.rows.append({"image": str(result.file), "detections": detection_rows(result.detections)})
        self.sizes[str(result.file)] = result.image.height, result.image.width

    def write(self, target: Path) -> None:
        """Write all rows so far as JSON."""
        from siamdetr.system.atomic_file import atomic_text

        atomic_text(target, json.dumps(self.rows, indent=1))

    def write_as(self, name: str, folder: Path) -> Path:
        """Write all rows in another format."""
        from siamdetr.labelling.prelabels import classes_of
        from siamdetr.reports.prediction_files import FORMATS, PredictedImage

        stems = {str(file): picture.stem for file, picture in self.pictures.items()}
        found = [
            PredictedImage(Path(row["image"]), stems[row["image"]], self.sizes[row["image"]], row["detections"])
            for row in self.rows
        ]
        classes = classes_of(self.model)
        return FORMATS[name](folder, found, dict(zip(classes.ids, classes.names, strict=True)))


def _predict_videos(
    model: SiamDETR | Model,
    sources: list[Path],
    output: Path,
    threshold: float | None,
    tiling: Tiling | None,
    *,
    stride: int,
    batch_size: int,
) -> None:
    """Write OUTPUT/NAME.mp4 and .jsonl of each video.

    Raises:
        typer.Exit: a video broke off or could not be opened; the code is 1.
    """
    from siamdetr.cli.console import console, progress
    from siamdetr.errors import VideoError
    from siamdetr.inference.tiles import detect
    from siamdetr.inference.video_sources import source_of
    from siamdetr.system.unique_names import unique_stems

    try:
        from siamdetr.inference.video import VideoReader
        from siamdetr.reports.annotated_video import annotate_video
    except ModuleNotFoundError as error:
        raise ValueError(f"video: {error.name} is not installed; pip install 'siamdetr[video]'") from None
    failures = []
    for source, stem in zip(sources, unique_stems([_stem(source) for source in sources]), strict=True):
        try:
            with VideoReader(source_of(source), stride=stride) as reader, progress("predict") as update:
                done = annotate_video(
                    reader,
                    lambda frames: detect(model, [frame.pixels for frame in frames], threshold, tiling),
                    output / stem,
                    batch_size=batch_size,
                    progress=update,
                )
        except VideoError as error:
            failures.append(str(error))
            continue
        text = f"{source}: {done.num_boxes} boxes in {done.num_frames} frames: {done.video}, boxes in {done.lines}"
        console.print(text, markup=False, soft_wrap=True)
        failures += [done.broken] if done.broken else []
    for failure in failures:
        console.print(failure, markup=False, soft_wrap=True, style="bold red")
    if failures:
        raise typer.Exit(1)


def _stem(source: Path) -> str:
    """The name of a video's outputs, without a suffix."""
    return f"camera-{source}" if str(source).isdigit() else (source.stem or "stream")


def _check(model: Path, images: list[Path], output: Path, pictures: dict[Path, Path], made: list[Path]) -> None:
    from siamdetr.errors import OutputError
    from siamdetr.images.header import IMAGE_SUFFIXES
    from siamdetr.system.outputs import Read, Written, check_outputs, model_reads

    beside = {path.resolve().parent for path in images if path.is_file()}
    if output.resolve() in beside and (taken := next((path for path in pictures.values() if path.exists()), None)):
        raise OutputError(
            f"-o {output}: holds images that are read, and {taken} in it would be written over; give another folder"
        )
    check_outputs(
        [*model_reads("MODEL", model), *(Read("IMAGES", path, IMAGE_SUFFIXES) for path in images)],
        files=[
            Written("--json", made[0]),
            *(Written("--save", path) for path in made[1:]),
            *(Written("-o", path) for path in pictures.values()),
        ],
        folders=[Written("-o", output)],
    )
