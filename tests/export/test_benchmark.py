"""`siamdetr benchmark`: times, sweeps, and equal figures on the terminal, in the CSV and in the plot."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.exported import model_of

from siamdetr.api import SiamDETR
from siamdetr.cli.__main__ import main
from siamdetr.cli.benchmark import split_backend
from siamdetr.data.synthetic.shapes import write_synthetic
from siamdetr.export.gate.images import drawn_images
from siamdetr.export.timing.benchmark import measure, with_ap, write_csv, write_plot
from siamdetr.images.preprocessing import Prepared, PreprocessingSpec
from siamdetr.inference.predictor import ScoredBoxes
from siamdetr.system.processes import memory_mib

IMAGES = [image.transpose(1, 2, 0) for image in drawn_images(3, 40, 60)]


class Recorder:
    """A model that detects nothing and remembers its inputs."""

    class_names = ("thing",)
    category_ids = ()
    preprocessing = PreprocessingSpec.from_size(32)

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def predict_batch(self, batch: Prepared) -> ScoredBoxes:
        self.shapes.append(batch.images.shape)
        none = np.zeros((len(batch), 0))
        return ScoredBoxes(none.astype(np.float32), none.astype(np.int64), np.zeros((len(batch), 0, 4), np.float32))


def test_warm_up_rounds_run_and_do_not_count() -> None:
    model, done = Recorder(), []
    found = measure(
        model,  # type: ignore[arg-type]
        IMAGES, name="a", runtime="b", batch=2, rounds=5, warmup=2, progress=lambda *state: done.append(state),
    )  # fmt: skip
    assert len(model.shapes) == 7
    assert done[-1] == (7, 7)
    assert (found.batch, found.height, found.width, found.rounds) == (2, 32, 48, 5)
    assert set(model.shapes) == {(2, 3, 32, 48)}


def test_the_parts_make_up_the_whole() -> None:
    found = measure(Recorder(), IMAGES, name="a", runtime="b", rounds=9)  # type: ignore[arg-type]
    assert 0 < found.pre_p50 <= found.pre_p95
    assert found.total_p50 <= found.total_p95
    assert found.total_p50 <= found.pre_p95 + found.model_p95 + found.post_p95
    assert found.images_per_second == pytest.approx(1000 / found.total_p50)


@pytest.mark.parametrize(
    ("own", "size", "shape"),
    [
        (PreprocessingSpec.from_size(32), 48, (48, 72)),
        (PreprocessingSpec.from_size((32, 32)), (40, 50), (40, 50)),
        (PreprocessingSpec(mode="letterbox", size=(32, 32)), 64, (64, 64)),
    ],
)
def test_sizes_follow_the_model_s_way_of_resizing(
    own: PreprocessingSpec, size: int | tuple[int, int], shape: tuple[int, int]
) -> None:
    model = Recorder()
    model.preprocessing = own  # type: ignore[misc]
    found = measure(model, IMAGES, name="a", runtime="b", size=size, rounds=1, warmup=0)  # type: ignore[arg-type]
    assert (found.height, found.width) == shape


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(
        ValueError, match="benchmark: got batch 0, 5 rounds and 0 to warm up, expected at least 1, 1 and 0"
    ):
        measure(Recorder(), IMAGES, name="a", runtime="b", batch=0, rounds=5, warmup=0)  # type: ignore[arg-type]


def test_memory_is_what_the_process_grew_by() -> None:
    before = memory_mib()
    if before is None:
        pytest.skip("this system does not say how much memory a process holds")
    held = np.ones(16 * 2**20)  # 128 MiB
    found = measure(Recorder(), IMAGES, name="a", runtime="b", rounds=1, memory_before=before)  # type: ignore[arg-type]
    assert found.memory_mib is not None
    assert 100 < found.memory_mib < 400
    assert held[0] == 1
    assert measure(Recorder(), IMAGES, name="a", runtime="b", rounds=1).memory_mib is None  # type: ignore[arg-type]


def test_csv_and_plot_hold_what_was_measured(tmp_path: Path) -> None:
    found = [measure(Recorder(), IMAGES, name="a", runtime="b", batch=n, rounds=1) for n in (1, 2)]  # type: ignore[arg-type]
    write_csv(tmp_path / "a.csv", with_ap(found, 0.25))
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [row["batch"] for row in rows] == ["1", "2"]
    assert {row["ap"] for row in rows} == {"0.25"}
    for name, measured in (("bars", found), ("scatter", with_ap(found, 0.25))):
        write_plot(tmp_path / f"{name}.svg", measured)
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()


def test_a_model_s_name_may_say_its_backend() -> None:
    assert split_backend("runs/a@openvino") == (Path("runs/a"), "openvino")
    assert split_backend("runs/a@b") == (Path("runs/a@b"), None)
    assert split_backend("runs/a") == (Path("runs/a"), None)


def test_the_command_compares_models_on_a_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    write_synthetic(data, num_unlabelled=1, num_train=1, num_val=2, size=48, classes=("disc", "star", "ring"))
    model = model_of("vanilla")
    path = tmp_path / "model.safetensors"
    SiamDETR.from_parts(
        model.detector, class_names=("disc", "star", "ring"), preprocessing=PreprocessingSpec.from_size(64)
    ).save(path)
    arguments = [
        "benchmark", path, f"{path}@pytorch", "--data", data, "--split", "val", "--batch", 1, "--batch", 2, "--imgsz", 64,
        "--rounds", 2, "--warmup", 1, "-o", tmp_path / "out",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["siamdetr", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    rows = list(csv.DictReader((tmp_path / "out" / "benchmark.csv").read_text().splitlines()))
    assert [(row["batch"], row["height"]) for row in rows] == [("1", "64"), ("2", "64")] * 2
    assert all(0 <= float(row["ap"]) <= 1 for row in rows)
    assert (tmp_path / "out" / "benchmark.svg").is_file()
    assert "PyTorch" in capsys.readouterr().out
