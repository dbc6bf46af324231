"""`siamdetr label` as a person types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.command import run_command
from helpers.data_sets import write_image
from helpers.tiny_models import tiny_model
from helpers.training_data import write_data


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("label") / "model.safetensors"
    tiny_model().save(path)
    return path


def label(*arguments: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    return run_command("label", *arguments, capsys=capsys, monkeypatch=monkeypatch)


def test_labels_are_written_and_a_bad_image_is_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        write_image(tmp_path / "photos" / f"{n}.png", seed=n, size=(90, 70))
    (tmp_path / "photos" / "bad.png").write_bytes(b"no")
    out = tmp_path / "out"
    code, text = label(
        model, tmp_path / "photos", "-o", out, "--sure", 0.6, "--look", 0.1, capsys=capsys, monkeypatch=monkeypatch
    )
    assert code == 1
    assert "bad.png" in text
    assert "1 images could not be used and have no labels" in text
    document = json.loads((out / "annotations" / "instances_train.json").read_text())
    assert [image["file_name"] for image in document["images"]] == ["0.png", "1.png", "2.png"]
    assert [category["id"] for category in document["categories"]] == [1, 5, 9]
    code, text = label(model, tmp_path / "photos", "-o", out, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 1
    assert "there is something here already" in text


def test_next_writes_the_chosen_images_alone_and_a_contact_sheet(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(4):
        write_image(tmp_path / "photos" / f"{n}.png", seed=n % 3, size=(90, 70))  # the last is the first again
    out = tmp_path / "out"
    code, text = label(
        model,
        tmp_path / "photos",
        "-o",
        out,
        "--next",
        4,
        "--to",
        "label-studio",
        capsys=capsys,
        monkeypatch=monkeypatch,
    )
    assert code == 0, text
    assert "No labelled images to choose thresholds on" in text
    assert len(json.loads((out / "tasks.json").read_text())) == 3
    assert (out / "contact-sheet.jpg").stat().st_size > 1000


def test_an_image_that_the_run_was_trained_on_is_not_chosen_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    tiny_model().save(run / "best.safetensors")
    (run / "config.yaml").write_text(f"steps: 1\ndata:\n  paths: [{json.dumps(str(data))}]\n")
    for n in range(3):
        write_image(tmp_path / "photos" / f"{n}.png", seed=n, size=(90, 70))
    labelled = next((data / "train").iterdir())
    shutil.copy(labelled, tmp_path / "photos" / f"again{labelled.suffix}")
    out = tmp_path / "out"
    options = ("-o", out, "--next", 4, "--sure", 0.6, "--look", 0.1)
    code, text = label(run, tmp_path / "photos", *options, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0, text
    document = json.loads((out / "annotations" / "instances_train.json").read_text())
    assert sorted(image["file_name"] for image in document["images"]) == ["0.png", "1.png", "2.png"]
