"""Headers of large data sets are read once: what is kept is used, and only while the file is the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.data_sets import write_coco, write_image
from PIL import Image

from siamdetr.data.readers import sizes
from siamdetr.data.readers.recognise import open_dataset
from siamdetr.data.readers.sizes import HeaderReader
from siamdetr.images.header import Header

NAMES = ["a.png", "b.jpg", "turned.jpg"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three images, of which one is turned; every data set counts as large."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sizes, "CACHED_FROM", 1)
    root = tmp_path / "photos"
    write_image(root / "a.png", seed=1, size=(60, 40))
    write_image(root / "b.jpg", seed=2, size=(30, 70))
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(root / "turned.jpg", seed=3, size=(50, 20), exif=exif)
    return root


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose headers are read, while the test runs."""
    names: list[str] = []
    real = sizes.read_headers

    def counted(paths: Sequence[Path], **options: Any) -> list[Header]:
        names.extend(path.name for path in paths)
        return real(paths, **options)

    monkeypatch.setattr(sizes, "read_headers", counted)
    return names


def headers(root: Path, names: Sequence[str] = NAMES) -> list[Header]:
    with HeaderReader(root, len(names)) as reader:
        return reader.read(names)


def the_file(root: Path) -> Path:
    (file,) = (root.parent / "cache" / "siamdetr" / "headers").glob("*.npz")
    return file


RIGHT = [Header((40, 60), False), Header((70, 30), False), Header((50, 20), True)]


def test_a_second_reading_opens_no_image(photos: Path, read: list[str]) -> None:
    assert headers(photos) == RIGHT
    assert read == NAMES
    read.clear()
    assert headers(photos) == RIGHT
    assert headers(photos, ["turned.jpg", "a.png"]) == [RIGHT[2], RIGHT[0]]
    assert read == []


def test_a_changed_file_and_a_new_one_are_read_anew(photos: Path, read: list[str]) -> None:
    headers(photos)
    read.clear()
    write_image(photos / "b.jpg", seed=4, size=(31, 71))
    write_image(photos / "new.png", seed=5, size=(10, 20))
    names = [*NAMES, "new.png"]
    assert headers(photos, names) == [RIGHT[0], Header((71, 31), False), RIGHT[2], Header((20, 10), False)]
    assert read == ["b.jpg", "new.png"]
    read.clear()
    assert headers(photos, names)[3] == Header((20, 10), False)
    assert read == []


def test_what_cannot_be_opened_is_not_remembered(photos: Path, read: list[str]) -> None:
    (photos / "bad.png").write_bytes(b"no image")
    names = ["bad.png", "missing.png"]
    assert [bool(header.problem) for header in headers(photos, names)] == [True, True]
    read.clear()
    assert [header.problem for header in headers(photos, names)] == ["damaged", "missing"]
    assert read == names


def test_no_flipped_byte_changes_a_size(photos: Path) -> None:
    headers(photos)
    file = the_file(photos)
    whole = file.read_bytes()
    for place in range(0, len(whole), 5):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        assert headers(photos) == RIGHT
    file.write_bytes(whole[: len(whole) // 2])
    assert headers(photos) == RIGHT


def test_a_place_that_cannot_be_written_to_is_no_error(photos: Path) -> None:
    (photos.parent / "cache").write_text("a file where the folder would be")
    assert headers(photos) == RIGHT


def test_small_data_sets_leave_nothing(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "CACHED_FROM", 5000)
    assert headers(photos) == RIGHT
    assert not (photos.parent / "cache").exists()


def test_a_data_set_has_the_same_sizes_the_second_time(photos: Path, read: list[str]) -> None:
    write_coco(root := photos.parent / "coco")
    first = open_dataset(root)
    assert len(read) == 3
    second = open_dataset(root)
    assert len(read) == 3
    assert first.sizes.tolist() == second.sizes.tolist() == [[40, 60]] * 3
