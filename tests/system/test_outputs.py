"""Outputs that would fall on what a command reads are refused before the first write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from siamdetr.errors import OutputError
from siamdetr.system.outputs import Read, Written, check_outputs, model_reads


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"a")
    return folder


def test_a_file_that_is_read_is_not_written_under_any_of_its_names(photos: Path, tmp_path: Path) -> None:
    original = photos / "a.jpg"
    (tmp_path / "soft.jpg").symlink_to(original)
    os.link(original, tmp_path / "hard.jpg")
    (tmp_path / "linked").symlink_to(photos)
    names = (
        original,
        photos / "deep/../a.jpg",
        tmp_path / "soft.jpg",
        tmp_path / "hard.jpg",
        tmp_path / "linked/a.jpg",
    )
    for name in names:
        with pytest.raises(OutputError, match=r"is read .IMAGE., and writing would destroy it"):
            check_outputs([Read("IMAGE", original)], files=[Written("-o", name)])
    check_outputs([Read("IMAGE", original)], files=[Written("-o", photos / "b.jpg")])


def test_a_folder_that_is_read_is_not_filled(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(photos)
    for folder in (photos, photos / "deep", photos / "deep/new", tmp_path / "linked/new"):
        with pytest.raises(OutputError, match="the next run would read what this one writes"):
            check_outputs([Read("IMAGES", photos)], folders=[Written("-o", folder)])
    check_outputs([Read("IMAGES", photos)], folders=[Written("-o", tmp_path), Written("-o", tmp_path / "photos-2")])


def test_a_file_inside_a_folder_counts_by_its_ending(photos: Path) -> None:
    read = Read("IMAGES", photos, frozenset({".jpg"}))
    check_outputs([read], files=[Written("--json", photos / "boxes.json")])
    for name in ("new.jpg", "new.JPG"):
        with pytest.raises(OutputError, match="would be read as part of it"):
            check_outputs([read], files=[Written("--json", photos / name)])


def test_a_folder_that_is_made_anew_holds_no_input(photos: Path, tmp_path: Path) -> None:
    for folder in (photos, tmp_path, photos / "a.jpg"):
        with pytest.raises(OutputError, match="is made anew"):
            check_outputs([Read("MODEL", photos / "a.jpg")], replaced=[Written("--triton", folder)])
    check_outputs([Read("MODEL", photos / "a.jpg")], replaced=[Written("--triton", photos / "deep")])


def test_two_outputs_are_two_files(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"--json .*: -o writes that file too"):
        check_outputs([], files=[Written("-o", tmp_path / "a"), Written("--json", tmp_path / "b/../a")])


def test_a_model_is_the_files_of_its_folder(photos: Path) -> None:
    assert [read.path for read in model_reads("MODEL", photos)] == [photos / "a.jpg"]
    assert [read.path for read in model_reads("MODEL", photos / "none")] == [photos / "none"]
