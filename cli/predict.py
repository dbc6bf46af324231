"""`siamdetr predict MODEL IMAGES…`: annotated pictures, and the boxes as JSON."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from siamdetr.cli import options

if TYPE_CHECKING:
    import supervision as sv

    from siamdetr.api import Backend


def predict(
    model: options.ModelPath,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    threshold: Annotated[
        float, typer.Option("--threshold", min=0.0, max=1.0, help="Lowest score of a detection.")
    ] = 0.5,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write.")] = Path("predictions"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Where to write the boxes; default: OUTPUT/predictions.json.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at a time.")] = 8,
    device: options.Device = "auto",
    backend: options.Backend = None,
) -> None:
    """Detect objects in images: write each picture with its boxes, and all boxes as JSON (xyxy, pixels)."""
    from siamdetr.api import load
    from siamdetr.cli.console import console, progress
    from siamdetr.drawing.boxes import draw
    from siamdetr.system.atomic_file import atomic_text, atomic_write

    files = _files(images)
    opened = load(model, device=device, backend=cast("Backend | None", backend))
    output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    names = _unique_names(files)
    with progress("predict") as update:
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            found = opened.predict(batch, threshold, batch_size)
            assert isinstance(found, list)
            for file, detections in zip(batch, found, strict=True):
                picture = draw(file, detections)
                atomic_write(output / names[file], partial(picture.save, format="JPEG", quality=92))
                rows.append({"image": str(file), "detections": _boxes(detections)})
            update(len(rows), len(files))
    target = json_file or output / "predictions.json"
    atomic_text(target, json.dumps(rows, indent=1))
    total = sum(len(row["detections"]) for row in rows)
    console.print(f"{total} boxes in {len(files)} images: pictures in {output}, boxes in {target}", markup=False)


def _files(paths: list[Path]) -> list[Path]:
    """The images named, those of folders in order.

    Raises:
        FileNotFoundError: a path is not there, or no path holds an image.
    """
    from siamdetr.cli.console import console
    from siamdetr.data.readers.paths import walk_files
    from siamdetr.images.header import IMAGE_SUFFIXES, is_foreign_image, is_image

    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            names = list(walk_files(path))
            files += [path / name for name in names if is_image(name)]
            if foreign := [name for name in names if is_foreign_image(name)]:
                console.print(
                    f"{path}: {len(foreign)} pictures in formats that are not decoded, such as {foreign[0]}: convert them",
                    markup=False,
                    soft_wrap=True,
                )
        elif path.exists():
            files.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such image or folder")
    if not files:
        raise FileNotFoundError(
            f"{', '.join(map(str, paths))}: no images here; looked for {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return files


def _unique_names(files: list[Path]) -> dict[Path, str]:
    """A .jpg name for each file's picture; files of one name in several folders are numbered."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for file in files:
        name, number = f"{file.stem}.jpg", 1
        while name in taken:
            number += 1
            name = f"{file.stem}-{number}.jpg"
        taken.add(name)
        names[file] = name
    return names


def _boxes(detections: sv.Detections) -> list[dict[str, Any]]:
    assert detections.confidence is not None
    assert detections.class_id is not None
    return [
        {
            "box": [round(float(x), 2) for x in box],
            "score": round(float(score), 5),
            "label": int(label),
            "name": str(name),
        }
        for box, score, label, name in zip(
            detections.xyxy, detections.confidence, detections.class_id, detections.data["class_name"], strict=True
        )
    ]
