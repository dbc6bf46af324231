"""Several studies in one folder: equal settings share cells and splits, each study keeps its answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.study_data import invented, settings
from helpers.training_data import write_data

from siamdetr.errors import StudyError
from siamdetr.settings.base import to_json
from siamdetr.study.cell import Cell
from siamdetr.study.report import write_study_report
from siamdetr.study.run_cell import CELLS, cell_folder
from siamdetr.study.runner import Grid, open_grid

REPORT, CSV = "report.html", "study.csv"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("study") / "data", train=10, val=3)


def finish(grid: Grid) -> None:
    """Leave a result in every cell of a grid."""
    for cell in grid.cells:
        content: dict[str, Any] = {
            "metrics": {"ap": 0.2, "ap50": 0.3, "ar100": 0.4},
            "steps": 2,
            "seconds": 1.0,
            "curve": [],
        }
        place = cell_folder(grid.folder, cell)
        place.mkdir(parents=True, exist_ok=True)
        (place / "result.json").write_text(json.dumps(content))


def as_written_at_first(data: Path, folder: Path, **changes: Any) -> Grid:
    """A finished study in a folder of its own, as earlier versions wrote it.

    Its name and extent are in study.json, and its report is in the root.
    """
    study = settings(data, **changes)
    grid = open_grid(study, folder)
    finish(grid)
    content = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(content | {"study": to_json(study)}))
    (folder / REPORT).write_text("of the first call")
    (folder / CSV).write_text("cell\n")
    return grid


def keys(cells: list[Cell]) -> list[str]:
    return [cell.key for cell in cells]


def test_a_second_question_runs_only_what_the_first_has_not_run(data: Path, tmp_path: Path) -> None:
    finish(open_grid(settings(data, seeds=[0]), tmp_path))
    assert not open_grid(settings(data, "convergence", seeds=[0]), tmp_path).missing
    assert keys(open_grid(settings(data, "qualitative", seeds=[0]), tmp_path).missing) == [
        "qualitative-siamese",
        "qualitative-detreg",
    ]
    assert keys(open_grid(settings(data, "initialization", seeds=[0]), tmp_path).missing) == [
        "agnostic-scratch",
        "agnostic-siamese",
        "agnostic-detreg",
        "heads-scratch-100pct-seed0",
        "heads-siamese-100pct-seed0",
        "heads-detreg-100pct-seed0",
    ]
    ablation = open_grid(settings(data, "ablation", seeds=[0]), tmp_path)
    assert "pretrain-siamese" not in keys(ablation.missing)
    assert "finetune-scratch-40pct-seed0" not in keys(ablation.missing)


def test_each_study_answers_in_a_folder_of_its_own(data: Path, tmp_path: Path) -> None:
    for study in ("data-efficiency", "convergence"):
        report = write_study_report(invented(open_grid(settings(data, study), tmp_path), lambda cell: 0.2))
        assert report == tmp_path / study / REPORT
        assert (tmp_path / study / CSV).read_text().startswith("cell,")
        assert (tmp_path / study / "plots").is_dir()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"data-efficiency", "convergence", "study.json", "splits.json"}
    assert "How much do labels count?" in (tmp_path / "data-efficiency" / REPORT).read_text()
    assert "in the folder above, which studies with these settings share: splits.json and cells" in report.read_text()


def test_a_study_with_fewer_fractions_removes_no_split(data: Path, tmp_path: Path) -> None:
    open_grid(settings(data, fractions=[0.2, 1.0]), tmp_path)
    before = json.loads((tmp_path / "splits.json").read_text())
    open_grid(settings(data, "convergence", fractions=[1.0], seeds=[0, 2]), tmp_path)
    open_grid(settings(data, "cost"), tmp_path)
    after = json.loads((tmp_path / "splits.json").read_text())
    assert after.items() > before.items()
    assert set(after) - set(before) == {"100 %, seed 2"}


def test_what_one_study_grew_to_does_not_disturb_another(data: Path, tmp_path: Path) -> None:
    finish(open_grid(settings(data, fractions=[0.2, 0.4, 1.0], seeds=[0, 1, 2]), tmp_path))
    grid = open_grid(settings(data, "convergence", fractions=[1.0], seeds=[0], methods=["detreg"]), tmp_path)
    assert keys(list(grid.results)) == [
        "pretrain-detreg",
        "finetune-scratch-100pct-seed0",
        "finetune-detreg-100pct-seed0",
    ]
    small = open_grid(settings(data, fractions=[0.4], seeds=[1]), tmp_path)
    assert {(cell.fraction, cell.seed) for cell in small.cells if cell.kind == "finetune"} == {(0.4, 1)}
    assert not small.missing


def test_a_folder_of_one_study_goes_on_and_takes_other_questions(data: Path, tmp_path: Path) -> None:
    first = as_written_at_first(data, tmp_path, seeds=[0])
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / CELLS).rglob("*")}
    again = open_grid(settings(data, seeds=[0, 1]), tmp_path)
    assert {cell.seed for cell in again.missing if cell.kind == "finetune"} == {1}
    assert set(again.results) == set(first.cells)
    assert not open_grid(settings(data, "convergence", seeds=[0]), tmp_path).missing
    write_study_report(again)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / CELLS).rglob("*")} == stamps
    assert (tmp_path / REPORT).read_text() == "of the first call"  # a file that we do not write is not ours to change
    assert "data-efficiency" not in (tmp_path / "study.json").read_text()


def test_a_folder_of_one_study_refuses_other_settings_all_the_same(data: Path, tmp_path: Path) -> None:
    as_written_at_first(data, tmp_path)
    with pytest.raises(StudyError) as caught:
        open_grid(settings(data, "convergence", evaluations=3, cost_steps=6), tmp_path)
    text = str(caught.value)
    assert "study.evaluations: 1 there, 3 now" in text
    assert "study.cost_steps: 5 there, 6 now" in text
    assert "study.study" not in text
    assert "Give the same settings to share its cells" in text


def test_labelled_images_that_changed_are_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train=10)
    folder = tmp_path / "studies"
    open_grid(settings(data), folder)
    write_data(data, train=12)
    with pytest.raises(StudyError) as caught:
        open_grid(settings(data, "convergence"), folder)
    assert "has other images for 100 %, seed 0 than the data now gives (10 there, 12 now)" in str(caught.value)
    assert "new runs would not compare with finished ones; give another folder with -o" in str(caught.value)
    (folder / "splits.json").write_text("[")
    with pytest.raises(StudyError, match=r"splits\.json: damaged; delete it"):
        open_grid(settings(data), folder)
