"""The image files that the arguments of a command mean."""

from __future__ import annotations

from collections import Counter
from pathlib import Path


def image_files(paths: list[Path]) -> list[Path]:
    """The named images, each once; those of folders in order.

    Other files in the folders are counted on the console.

    Raises:
        FileNotFoundError: a path is not there, or no path holds an image.
    """
    from siamdetr.cli.console import console
    from siamdetr.data.readers.paths import walk_files
    from siamdetr.images.header import IMAGE_SUFFIXES, is_image

    files: list[Path] = []
    others: Counter[str] = Counter()
    for path in paths:
        if path.is_dir():
            names = list(walk_files(path))
            files += [path / name for name in names if is_image(name)]
            others.update(Path(name).suffix or name for name in names if not is_image(name))
        elif path.exists():
            files.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such image or folder")
    if not files:
        raise FileNotFoundError(
            f"{', '.join(map(str, paths))}: no images here; looked for {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    if others:
        counted = ", ".join(f"{count} × {suffix}" for suffix, count in others.most_common(5))
        text = f"{others.total()} files that are not images we decode are left out: {counted}"
        console.print(text, markup=False, soft_wrap=True)
    return list(dict.fromkeys(files))


def only_videos(paths: list[Path]) -> bool:
    """Whether all paths are videos, streams or cameras, and none is an image.

    Raises:
        ValueError: some do and some do not.
    """
    from siamdetr.inference.video_sources import is_video, source_of

    videos = [path for path in paths if not path.is_dir() and is_video(source_of(path))]
    if videos and len(videos) < len(paths):
        other = next(path for path in paths if path not in videos)
        raise ValueError(f"{other} is no video and {videos[0]} is one: predict images and videos in calls of their own")
    return bool(videos)
