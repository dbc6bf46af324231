"""Studies: grids that are kept and continued, fair comparisons, intervals, and a report that answers."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.study_data import invented, quiet, settings
from helpers.training_data import DETECTOR, write_data
from helpers.training_data import finetune_settings as settings_of_a_run
from typer.testing import CliRunner

from siamdetr.cli.__main__ import app
from siamdetr.errors import StudyError
from siamdetr.study.cell import Cell
from siamdetr.study.estimate import estimate
from siamdetr.study.grids import ablation_variations, plan, sensitivity_variations
from siamdetr.study.report import write_study_report
from siamdetr.study.run_cell import CellOutcome, CellTask, cell_folder, read_result, run_cell
from siamdetr.study.runner import open_grid, run_grid
from siamdetr.study.settings import finetune_settings
from siamdetr.study.statistics import interval, paired_difference
from siamdetr.study.summary import answer, gain_sentence
from siamdetr.system.parallel import TaskRunner
from siamdetr.training.finetune import finetune
from siamdetr.training.initial_weights import read_start

STUDIES = ("data-efficiency", "initialization", "sensitivity", "ablation", "cost", "convergence", "qualitative")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("study") / "data", train=10, val=3)


def test_an_interval_is_student_s() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert (found.low, found.high) == pytest.approx((2 - found.half, 2 + found.half))  # type: ignore[operator]
    assert interval([5.0]).half is None
    with pytest.raises(ValueError, match="got no value, expected at least one"):
        interval([])


def test_differences_are_paired_by_seed() -> None:
    found = paired_difference({0: 11.0, 1: 21.0, 2: 99.0}, {0: 10.0, 1: 20.0})
    assert found is not None
    assert (found.mean, found.half, found.n) == (1, 0, 2)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_pretraining_is_shared_by_all_fractions_and_seeds(data: Path) -> None:
    cells = plan(settings(data))
    assert [cell.key for cell in cells[:2]] == ["pretrain-siamese", "pretrain-detreg"]
    assert len(cells) == 2 + 3 * 2 * 2
    assert cells[2].key == "finetune-scratch-40pct-seed0"
    assert cells[2].source is None
    assert cells[3].source == cells[0]


@pytest.mark.parametrize("study", STUDIES)
def test_every_cell_has_a_name_of_its_own_and_comes_after_what_it_needs(data: Path, study: str) -> None:
    cells = plan(settings(data, study))
    assert len({cell.key for cell in cells}) == len(cells) > 0
    for i, cell in enumerate(cells):
        assert cell.source is None or cell.source in cells[:i]


def test_the_preset_s_own_value_is_one_cell_however_often_it_is_varied(data: Path) -> None:
    groups = ablation_variations(settings(data, "ablation"))
    assert groups["proposals"] == {"edgeboxes": (), "random": (("siamese.proposals", "random"),)}
    assert groups["view IoU"]["0.5"] == ()
    assert groups["losses"]["both"] == ()
    assert groups["losses"]["region only"] == (("siamese.weight_global", "0"),)
    assert sensitivity_variations(settings(data, "sensitivity"))[1.0, 1.0] == ()


def test_finetuning_differs_in_its_start_alone(data: Path, tmp_path: Path) -> None:
    study = settings(data)
    pair = [
        finetune_settings(study, Cell("finetune", init, 1, 0.4), tmp_path, init=start, num_train=10)
        for init, start in (("scratch", None), ("siamese", tmp_path / "pretrained"))
    ]
    assert pair[0].model_copy(update={"init": pair[1].init}) == pair[1]
    assert pair[0].seed == 1
    assert pair[0].data.fraction == 0.4
    assert pair[0].val_every == pytest.approx(2 * 2 / 4)  # one evaluation, at the end of 2 steps of 2 on 4 images


def test_the_heads_alone_are_trained_whatever_else_finetuning_is_told_to_freeze(data: Path, tmp_path: Path) -> None:
    study = settings(data, "initialization", finetune=("freeze=backbone",))
    frozen = {
        cell.freeze: finetune_settings(study, cell, tmp_path, init=None, num_train=10).freeze
        for cell in (Cell("finetune", "scratch"), Cell("finetune", "scratch", freeze="body"))
    }
    assert frozen == {"none": "backbone", "body": "body"}


@pytest.mark.parametrize(
    ("assignment", "remedy"),
    [
        ("seed=3", "give --seeds"),
        ("steps=9", "give --pretrain-steps or --finetune-steps"),
        ("data.fraction=0.5", "give --fractions"),
        ("method=updetr", "give --methods"),
        ("val_every=1", "give --evaluations"),
        ("init=mine", "it is the pretrained run, or none"),
        ("output=elsewhere", "give -o"),
    ],
)
def test_what_the_study_decides_cannot_be_set_for_its_runs(data: Path, assignment: str, remedy: str) -> None:
    for stage in ("both", "pretrain", "finetune"):
        with pytest.raises(ValueError, match=f"got {assignment}, which the study sets for every run; {remedy}"):
            settings(data, **{stage: (assignment,)})


def test_splits_are_nested_and_saved(data: Path, tmp_path: Path) -> None:
    open_grid(settings(data), tmp_path / "study")
    splits = json.loads((tmp_path / "study" / "splits.json").read_text())
    assert list(splits) == ["40 %, seed 0", "40 %, seed 1", "100 %, seed 0", "100 %, seed 1"]
    assert len(splits["40 %, seed 0"]) == 4
    for seed in (0, 1):
        assert set(splits[f"40 %, seed {seed}"]) < set(splits[f"100 %, seed {seed}"])


def test_a_fraction_that_leaves_a_class_without_a_label_says_which(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train=6)
    file = data / "annotations" / "instances_train.json"
    document = json.loads(file.read_text())
    document["annotations"] = [a for a in document["annotations"] if a["category_id"] == 1 or a["image_id"] == 1]
    for annotation in document["annotations"]:
        if annotation["image_id"] == 1:
            annotation["category_id"] = 2
    file.write_text(json.dumps(document))
    seeds = list(range(6))
    grid = open_grid(settings(data, fractions=[0.17, 1.0], seeds=seeds), tmp_path / "study")
    assert grid.notes
    assert "17 % of the labels with seed" in grid.notes[0]
    assert "leaves without a single label: " in grid.notes[0]
    assert any("without a single label: blue. " in note for note in grid.notes)
    page = write_study_report(grid).read_text()
    assert "leaves without a single label: " in page


def test_a_study_runs_from_end_to_end_keeps_what_is_finished_and_goes_on(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    study = settings(data, seeds=[0], fractions=[1.0], methods=["siamese"])
    outcomes: list[CellOutcome] = []
    grid = run_grid(open_grid(study, folder), engine=TaskRunner("here"), progress=quiet, told=outcomes.append)
    assert [outcome.error for outcome in outcomes] == [""] * 3
    assert not grid.missing
    report = write_study_report(grid)
    page = report.read_text()
    assert "With 100 % of the labels Siamese pretraining gives " in page
    assert "over scratch (one seed: no interval)." in page
    assert not re.search(r"(src|href)=[\"']?http|url\(http|@import", page)  # stands alone
    rows = list(csv.DictReader((grid.place / "study.csv").read_text().splitlines()))
    assert [row["cell"] for row in rows] == [cell.key for cell in grid.cells]
    assert all(0 <= float(row["ap"]) <= 1 for row in rows[1:])
    assert report == folder / "data-efficiency" / "report.html"
    assert {path.name for path in (grid.place / "plots").iterdir()} >= {
        "ap.svg",
        "ap.png",
        "gain-ap.svg",
        "gain-ap.png",
    }
    assert [point[0] for point in grid.results[grid.cells[1]].curve] == [
        2 * 2 / 10
    ]  # 2 steps of 2 images, of 10: epochs
    place = cell_folder(folder, grid.cells[1])
    assert (place / "report.html").is_file()
    assert not (place / "last.ckpt").exists()  # finished: nothing to resume
    (cell_folder(folder, grid.cells[2]) / "result.json").unlink()
    stamp = (cell_folder(folder, grid.cells[0]) / "result.json").stat().st_mtime_ns
    again = open_grid(settings(data, seeds=[0, 1], fractions=[1.0], methods=["siamese"]), folder)
    assert [cell.key for cell in again.missing] == [
        "finetune-siamese-100pct-seed0",
        "finetune-scratch-100pct-seed1",
        "finetune-siamese-100pct-seed1",
    ]
    assert (cell_folder(folder, grid.cells[0]) / "result.json").stat().st_mtime_ns == stamp
    found = estimate(again, told=quiet)
    assert {one.source for one in found.values()} == {"finished cells"}
    assert all(one.seconds is not None and one.seconds > 0 for one in found.values())


def test_every_run_starts_from_the_model_that_is_given(data: Path, tmp_path: Path) -> None:
    """Pretraining, and finetuning without it; the detector's shape is that of the start."""
    begun = finetune(settings_of_a_run(data, tmp_path / "begun", detector={**DETECTOR, "num_queries": 15})).folder
    study = settings(data, methods=["siamese"], fractions=[1.0], seeds=[0], start=str(begun))
    outcomes: list[CellOutcome] = []
    grid = open_grid(study, tmp_path / "study")
    done = run_grid(grid, engine=TaskRunner("here"), progress=quiet, told=outcomes.append)
    assert [outcome.error for outcome in outcomes] == [""] * 3
    first = read_start(str(begun)).metadata.lineage
    for cell in done.cells:
        found = read_start(str(cell_folder(done.folder, cell)))
        assert found.metadata.lineage[: len(first)] == first, cell.key
        assert found.detector.num_queries == 15
    page = write_study_report(done).read_text(encoding="utf-8")
    assert f"Every run starts from {begun}; “scratch” is that start without pretraining." in page


def test_other_settings_are_refused_with_the_difference(data: Path, tmp_path: Path) -> None:
    open_grid(settings(data), tmp_path / "study")
    open_grid(settings(data, seeds=[0, 1, 2], fractions=[0.2, 0.4]), tmp_path / "study")  # may grow
    with pytest.raises(StudyError) as caught:
        open_grid(settings(data, finetune_steps=7, both=["optimizer.lr=0.01"]), tmp_path / "study")
    text = str(caught.value)
    assert "holds studies with other settings:" in text
    assert "study.finetune_steps: 2 there, 7 now" in text
    assert "study.both: [] there, ['optimizer.lr=0.01'] now" in text
    assert "another folder with -o" in text
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.txt").write_text("mine")
    with pytest.raises(StudyError, match="not empty, and not a study; give another folder with -o"):
        open_grid(settings(data), tmp_path / "else")
    (tmp_path / "study" / "study.json").write_text("{")
    with pytest.raises(StudyError, match=r"study\.json: damaged"):
        open_grid(settings(data), tmp_path / "study")


def test_a_cell_that_fails_is_named_and_the_others_go_on(data: Path, tmp_path: Path) -> None:
    study = settings(data, seeds=[0], fractions=[1.0], methods=["siamese"], pretrain=["siamese.num_regions=7"])
    grid = open_grid(study, tmp_path / "study")  # 20 queries are not a multiple of 7 regions
    outcomes: list[CellOutcome] = []
    grid = run_grid(grid, engine=TaskRunner("here"), progress=quiet, told=outcomes.append)
    assert [outcome.cell.key for outcome in outcomes if outcome.error] == ["pretrain-siamese"]
    assert [cell.key for cell in grid.results] == ["finetune-scratch-100pct-seed0"]
    page = write_study_report(grid).read_text()
    assert "2 of 3 cells are not finished: the same command goes on with them." in page
    assert "pretrain-siamese failed: " in page


def test_a_broken_result_counts_as_none(data: Path, tmp_path: Path) -> None:
    grid = open_grid(settings(data), tmp_path / "study")
    place = cell_folder(grid.folder, grid.cells[0])
    place.mkdir(parents=True)
    (place / "result.json").write_text('{"metrics"')
    assert read_result(grid.folder, grid.cells[0]) is None


def test_pretrained_detectors_are_measured_scored_and_drawn(data: Path, tmp_path: Path) -> None:
    study = settings(data, "qualitative", methods=["siamese"])
    grid = run_grid(open_grid(study, tmp_path / "study"), engine=TaskRunner("here"), progress=quiet, told=quiet)
    assert not grid.missing
    page = write_study_report(grid).read_text()
    assert page.count("data:image/jpeg") == 3
    assert "Siamese DETR: attention" in page
    folder = grid.folder
    for init in ("siamese", "scratch"):
        outcome = run_cell(CellTask(Cell("agnostic", init), study, folder, 10))
        assert outcome.error == ""
        assert outcome.result is not None
        assert 0 <= outcome.result.metrics["ar100"] <= 1
    outcome = run_cell(CellTask(Cell("cost", "detreg"), study, folder, 10))
    assert outcome.result is not None
    assert outcome.result.metrics["seconds_per_step"] > 0
    assert outcome.result.metrics["memory_mib"] > 50


@pytest.mark.parametrize(
    ("study", "text"),
    [
        (
            "initialization",
            "AR@100 is 20.0\u00a0±\u00a00.0 with a random body; over it: Siamese DETR +10.0\u00a0±\u00a00.0 and DETReg +10.0\u00a0±\u00a00.0. "
            "Not finetuned at all, on any object: random 20.0, Siamese DETR 30.0 and DETReg 30.0.",
        ),
        ("sensitivity", "With 40 % of the labels the best setting is"),
        ("ablation", "+10.0\u00a0±\u00a00.0 over scratch"),
        ("cost", "A pretraining step of 0 takes: Siamese DETR 0.3 s and 0 MiB and DETReg 0.3 s and 0 MiB."),
        (
            "convergence",
            "Scratch reaches its best AP on the val part, 20.0, after 3 epochs; pretrained, it is reached by: ",
        ),
        ("qualitative", "What Siamese DETR and DETReg find before any finetuning"),
    ],
)
def test_every_study_answers_in_its_first_sentence(data: Path, tmp_path: Path, study: str, text: str) -> None:
    grid = invented(
        open_grid(settings(data, study), tmp_path / "study"), lambda cell: 0.2 if cell.init == "scratch" else 0.3
    )
    assert text in answer(grid)
    page = write_study_report(grid).read_text()
    assert "How this was measured" in page
    assert (page.count("<svg") >= 1) is (study != "qualitative")


def test_the_first_sentence_gives_the_gain_with_its_interval(data: Path, tmp_path: Path) -> None:
    grid = open_grid(settings(data), tmp_path / "study")
    gains = {"scratch": 0.0, "siamese": 0.1, "detreg": -0.1}
    clear = invented(grid, lambda cell: 0.2 + gains[cell.init] + 0.01 * cell.seed * (cell.init == "siamese"))
    assert answer(clear).startswith(
        "With 40 % of the labels Siamese pretraining gives +10.5 AP (95 % CI +4.1 to +16.9) over scratch. There: DETReg −10.0"
    )
    noisy = invented(grid, lambda cell: 0.2 + gains[cell.init] * (1 if cell.seed else -1))
    assert gain_sentence(noisy, "siamese", 0.4).endswith("over scratch; an interval that holds 0 shows no effect.")
    assert gain_sentence(grid, "siamese", 0.4).endswith("has no finished pair with scratch yet.")


def test_convergence_says_what_share_of_scratch_s_epochs_each_start_needs(data: Path, tmp_path: Path) -> None:
    study = settings(data, "convergence", methods=["siamese", "updetr", "detreg"])
    last = {"scratch": 0.2, "siamese": 0.7, "updetr": 0.1, "detreg": 0.25}
    grid = invented(open_grid(study, tmp_path / "study"), lambda cell: last[cell.init])
    assert answer(grid) == (
        "Scratch reaches its best AP on the val part, 20.0, after 3 epochs; pretrained, it is reached by: Siamese DETR after 1 (33 % of them), "
        "UP-DETR not within 3 and DETReg after 3 (100 % of them). Looked at 3 times; means over seeds."
    )
    some = replace(grid, results={cell: result for cell, result in grid.results.items() if cell.init != "detreg"})
    assert "and DETReg is not finished yet." in answer(some)
    assert answer(replace(grid, results={})) == "The run from scratch is not finished yet."


def test_initialization_says_what_is_not_sure_or_not_there(data: Path, tmp_path: Path) -> None:
    grid = open_grid(settings(data, "initialization"), tmp_path / "study")
    assert answer(grid) == "The run with a random body is not finished yet."
    noisy = invented(grid, lambda cell: 0.2 + 0.1 * cell.seed * (cell.init == "siamese"))
    assert "; an interval that holds 0 shows no effect. Not finetuned at all" in answer(noisy)


def test_cells_run_in_processes(data: Path, tmp_path: Path) -> None:
    study = settings(data, seeds=[0], fractions=[1.0], methods=["siamese"])
    grid = open_grid(study, tmp_path / "study")
    cells = [cell for cell in grid.cells if cell.init == "scratch"]
    tasks = [CellTask(cell, study, grid.folder, len(grid.train), "cpu", 1) for cell in cells]
    outcomes = list(TaskRunner("processes", 1, fresh=True).run(run_cell, tasks))
    assert [outcome.error for outcome in outcomes] == [""]
    assert read_result(grid.folder, cells[0]) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data-eficiency"], "setting 'study' got 'data-eficiency'"),
        (["data-efficiency", "--fractions", "0.1,2"], "fractions: got 2.0, expected shares above 0 and at most 1"),
        (
            ["ablation", "--methods", "detreg"],
            "--methods: has no effect here: this study varies settings of Siamese DETR alone",
        ),
        (["data-efficiency", "--seeds", "a"], "--seeds got 'a', expected numbers with commas between them"),
    ],
)
def test_a_study_that_makes_no_sense_says_why(data: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["study", *arguments, "--data", str(data)])
    text = " ".join(result.output.replace("│", " ").split()) + str(result.exception)
    assert result.exit_code != 0
    assert message in text


def test_a_dry_run_prints_the_grid_with_times_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    result = CliRunner().invoke(
        app,
        ["study", "data-efficiency", "--data", str(data), "--fast", "--methods", "siamese", "--seeds", "0", "--dry-run",
         "-o", str(folder)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "finetune-siamese-30pct-seed0" in result.output
    assert "4 steps tried here" in result.output
    assert not folder.exists()
