"""`siamdetr split DATA -o DIR`: divide labelled images into parts with the same mix of classes.

Near-duplicates stay in one part.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siamdetr.cli import options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from siamdetr.data.index import DetectionIndex

_DEFAULT = ("train=0.8", "val=0.1", "test=0.1")


def split(
    data: Annotated[Path, typer.Argument(help="A labelled data set: COCO, PASCAL VOC or YOLO.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder of the new data set; new or empty.")],
    parts: Annotated[
        list[str] | None,
        typer.Option("--part", metavar="NAME=SHARE", help="May be given again; default: train=0.8 val=0.1 test=0.1."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="REGEX", help="Files stay together in which its first group is the same."),
    ] = None,
    duplicates: Annotated[
        bool, typer.Option("--duplicates/--no-duplicates", help="Keep near-duplicate images together.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", help="Of the division.")] = 0,
    data_format: options.Format = "auto",
) -> None:
    """Write annotations/instances_PART.json below DIR; images stay where they are."""
    from siamdetr.cli.console import console
    from siamdetr.data.coco_writer import coco_document
    from siamdetr.data.index import require_labels
    from siamdetr.data.readers.recognise import open_dataset
    from siamdetr.data.split_plan import plan_split
    from siamdetr.system.atomic_file import atomic_bytes
    from siamdetr.system.outputs import check_empty

    check_empty(output)
    shares = _shares(parts or list(_DEFAULT))
    index = require_labels(open_dataset(data, format=data_format))
    groups = _groups(index, group, duplicates)
    for name, positions in plan_split(index, shares, groups=groups, seed=seed).items():
        document = coco_document(index, positions.tolist(), base=output)
        atomic_bytes(output / "annotations" / f"instances_{name}.json", json.dumps(document).encode())
        _tell(index, name, positions)
    console.print(f"Train on it: siamdetr finetune --data {output}", markup=False, soft_wrap=True)


def _shares(texts: list[str]) -> dict[str, float]:
    """Shares by the name of the part.

    Raises:
        typer.BadParameter: not NAME=SHARE.
    """
    shares: dict[str, float] = {}
    for text in texts:
        name, _, share = text.partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            raise typer.BadParameter(f"--part got '{text}', expected NAME=SHARE, such as val=0.1") from None
    return shares


def _groups(index: DetectionIndex, pattern: str | None, duplicates: bool) -> NDArray[np.int64]:
    """The group of each image; images of one group stay in one part."""
    import numpy as np

    from siamdetr.cli.console import console, progress
    from siamdetr.data.duplicates import duplicate_groups, find_duplicates, hash_images
    from siamdetr.data.split_plan import group_by_pattern, join_groups

    groupings = [np.arange(len(index))]
    if pattern is not None:
        groupings.append(group_by_pattern([index.relative_path(i) for i in range(len(index))], pattern))
    if duplicates:
        with progress("duplicates") as update:
            found = find_duplicates(hash_images([index.path(i) for i in range(len(index))], progress=update))
        together = duplicate_groups(found)
        console.print(f"{sum(map(len, together))} images are near-duplicates, in {len(together)} groups", markup=False)
        groupings.append(found)
    return join_groups(*groupings)


def _tell(index: DetectionIndex, name: str, positions: NDArray[np.int64]) -> None:
    """Print the numbers of images, and of boxes of each class, in a part."""
    from siamdetr.cli.console import console

    counts = index.subset(positions).class_counts()
    classes = ", ".join(f"{count} {label}" for label, count in zip(index.class_names, counts, strict=True))
    console.print(f"{name}: {len(positions)} images; {classes}", markup=False, soft_wrap=True)
