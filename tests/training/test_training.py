"""Whole runs on a tiny data set: the files they leave, and that a resumed run changes nothing."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.paths import TESTS
from helpers.processes import group, program, waited_for
from helpers.signals import SignalAt
from helpers.training_data import DETECTOR, finetune_settings, pretrain_settings, write_data
from torch import Tensor

from siamdetr.data.readers.recognise import open_dataset
from siamdetr.errors import CheckpointError, NonFiniteLossError, SettingsError
from siamdetr.images.preprocessing import IMAGENET, Normalization
from siamdetr.model_file import load_model, read_metadata, save_model
from siamdetr.models.criterion.losses import DetectionCriterion
from siamdetr.pretext.registry import PRETEXTS
from siamdetr.pretext.run_settings import PretrainSettings
from siamdetr.proposals.compute import compute_proposals
from siamdetr.proposals.methods import Recipe
from siamdetr.settings.training import FinetuneSettings
from siamdetr.system.signals import Interrupted
from siamdetr.training.checkpoints.checkpoint_file import read_checkpoint
from siamdetr.training.checkpoints.checkpoint_io import AtomicCheckpointIO
from siamdetr.training.describe_file import describe
from siamdetr.training.finetune import finetune
from siamdetr.training.pretrain import pretrain


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def pretrained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(pretrain_settings(data, tmp_path_factory.mktemp("runs") / "pretrained")).folder


def killed(settings: FinetuneSettings | PretrainSettings, step: int) -> int:
    """Train in a process that sends itself SIGKILL after `step` steps; returns its exit code.

    The code is negative for a signal.
    """
    stage = "finetune" if isinstance(settings, FinetuneSettings) else "pretrain"
    code = textwrap.dedent(
        f"""
        import sys, torch
        sys.path.insert(0, {str(TESTS)!r})
        torch.set_num_threads(1)
        from helpers.signals import SignalAt
        from siamdetr.training.{stage} import {stage}
        from {type(settings).__module__} import {type(settings).__name__} as Settings
        {stage}(Settings.model_validate_json(sys.stdin.read()), progress=SignalAt({int(signal.SIGKILL)}, "train", {step}))
        """
    )
    given = settings.model_dump_json(exclude_unset=True)
    return subprocess.run([sys.executable, "-c", code], input=given, text=True, check=False).returncode


def rows(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without the columns that depend on the clock."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(file)]


def assert_same(a: Any, b: Any, where: str = "checkpoint") -> None:
    """Nested states are equal, bit for bit."""
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def final_state(folder: Path) -> dict[str, Any]:
    """Weights, optimiser, schedule and callbacks at the end of a run."""
    state = read_checkpoint(folder / "last.ckpt")
    return {key: state[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "step")}


def test_finetuning_leaves_a_run_folder(data: Path, tmp_path: Path) -> None:
    result = finetune(finetune_settings(data, tmp_path / "run"))
    names = {path.name for path in result.folder.iterdir()}
    assert names == {
        "config.yaml",
        "metrics.csv",
        "tensorboard",
        "last.ckpt",
        "previous.ckpt",
        "best.safetensors",
        "last.safetensors",
        "evaluation.json",
        "pictures",
        "attention",
        "report.html",
    }
    assert result.model == result.folder / "best.safetensors"
    assert result.steps == 6
    assert result.metrics is not None
    settings, metadata = read_metadata(result.folder)
    assert settings.num_classes == 2
    assert metadata.class_names == ("red", "blue")
    assert metadata.category_ids == (1, 2)
    assert metadata.metrics["ap"] == pytest.approx(result.metrics.ap)
    assert metadata.lineage == (f"finetune: conditional on {data} (8 images), 6 steps",)
    config = yaml.safe_load((result.folder / "config.yaml").read_text())
    assert FinetuneSettings.model_validate(config).detector.num_classes == 2
    losses = [float(row["loss"]) for row in rows(result.folder) if row["loss"]]
    assert len(losses) == 6
    page = (result.folder / "report.html").read_text()
    for text in (
        "Finetuning of Conditional DETR on test_resnet",
        "Per class",
        "red",
        "<svg",
        "data:image/jpeg",
        "Settings",
    ):
        assert text in page


def test_a_killed_run_goes_on_as_if_nothing_had_been(data: Path, tmp_path: Path) -> None:
    """SIGKILL two steps after a checkpoint, within an epoch; dropout, EMA and a schedule are on."""

    def settings(name: str, **changes: Any) -> FinetuneSettings:
        schedule = {"name": "cosine", "warmup": 0.3}
        return finetune_settings(data, tmp_path / name, steps=8, ema=0.9, schedule=schedule, log_every=2, **changes)

    finetune(settings("whole"))
    assert killed(settings("killed"), 5) == -signal.SIGKILL
    assert read_checkpoint(tmp_path / "killed" / "last.ckpt")["step"] == 3
    finetune(settings("killed", workers=2), resume="auto")  # the number of workers changes no sample
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert_same(final_state(tmp_path / "killed"), final_state(tmp_path / "whole"))


def test_a_killed_pretraining_goes_on_as_if_nothing_had_been(data: Path, tmp_path: Path) -> None:
    def settings(name: str) -> PretrainSettings:
        return pretrain_settings(data, tmp_path / name, steps=5, grad_accum=2)

    pretrain(settings("whole"))
    assert killed(settings("killed"), 3) == -signal.SIGKILL
    result = pretrain(settings("killed"), resume=str(tmp_path / "killed" / "last.ckpt"))
    assert result.steps == 5
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert_same(final_state(tmp_path / "killed"), final_state(tmp_path / "whole"))


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_gives_its_exit_code(data: Path, tmp_path: Path, signum: int, code: int) -> None:
    with pytest.raises(
        Interrupted, match=f"{signal.Signals(signum).name}: saved at step 2; go on with --resume auto"
    ) as caught:
        finetune(finetune_settings(data, tmp_path / "run"), progress=SignalAt(signum, "train", 2))
    assert caught.value.code == code
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")["step"] == 2
    assert finetune(finetune_settings(data, tmp_path / "run"), resume="auto").steps == 6


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_of_a_training_saves(data: Path, tmp_path: Path, signum: int) -> None:
    """As a terminal, systemd and job schedulers send it: also to the processes that read images."""
    code = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(TESTS)!r})
        from helpers.training_data import finetune_settings
        from siamdetr.training.finetune import finetune
        class Tell:
            def begin(self, task, total, done=0): pass
            def update(self, task, done, values=None): print(task, done, flush=True)
            def end(self, task): pass
        settings = finetune_settings(Path({str(data)!r}), Path({str(tmp_path / "run")!r}), steps=100000, workers=2)
        finetune(settings, progress=Tell())
        """
    )
    with program(sys.executable, "-c", code) as training:
        assert training.stdout is not None
        while "train" not in training.stdout.readline():
            assert training.poll() is None
        os.killpg(training.pid, signum)
        _, errors = training.communicate(timeout=60)
        waited_for(lambda: not group(training.pid))
    assert training.returncode == 128 + signum, errors
    said = f"{signal.Signals(signum).name}: finishing the step and saving; once more to leave at once"
    assert errors.count(said) == 1
    assert "Traceback" not in errors
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")["step"] >= 1


def test_a_signal_during_evaluation_saves_and_evaluates_again(data: Path, tmp_path: Path) -> None:
    settings = finetune_settings(data, tmp_path / "run")
    with pytest.raises(Interrupted):
        finetune(settings, progress=SignalAt(signal.SIGTERM, "evaluate", 2))
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")["step"] == 6
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_an_evaluation_that_was_broken_off_is_repeated(data: Path, tmp_path: Path) -> None:
    def settings(name: str) -> FinetuneSettings:
        return finetune_settings(data, tmp_path / name, val_every=0.5)  # every second step

    finetune(settings("whole"))
    with pytest.raises(Interrupted):
        finetune(settings("broken"), progress=SignalAt(signal.SIGTERM, "evaluate", 2))
    finetune(settings("broken"), resume="auto")
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")


def test_a_loss_that_is_not_finite_stops_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, calls = DetectionCriterion.forward, []

    def poisoned(self: DetectionCriterion, *arguments: Any) -> dict[str, Tensor]:
        calls.append(1)
        losses = forward(self, *arguments)
        return losses | {"loss_bbox": losses["loss_bbox"] * (float("nan") if len(calls) == 5 else 1)}

    monkeypatch.setattr(DetectionCriterion, "forward", poisoned)
    with pytest.raises(NonFiniteLossError) as caught:
        finetune(finetune_settings(data, tmp_path / "run"))
    text = str(caught.value)
    assert text.startswith("step 5: loss = nan, loss_bbox = nan; images ")
    assert "The run stops; the last checkpoint is from before it. Lower optimizer.lr" in text
    state = read_checkpoint(tmp_path / "run" / "last.ckpt")
    assert state["step"] == 3
    assert all(bool(value.isfinite().all()) for value in state["state_dict"].values())


def test_resuming_with_other_settings_is_refused(data: Path, tmp_path: Path, pretrained: Path) -> None:
    finetune(finetune_settings(data, tmp_path / "run", steps=2))
    changed = finetune_settings(data, tmp_path / "run", steps=2, batch_size=4, optimizer={"lr": 0.5}, workers=1)
    with pytest.raises(CheckpointError) as caught:
        finetune(changed, resume="auto")
    text = str(caught.value)
    assert "last.ckpt: cannot resume with other settings than the run's own:" in text
    assert "  batch_size: 2 in the checkpoint, 4 now" in text
    assert "  optimizer.lr: 0.0001 in the checkpoint, 0.5 now" in text
    assert "workers" not in text
    with pytest.raises(CheckpointError, match="a checkpoint of pretrain, not of finetune; use it with --init"):
        finetune(finetune_settings(data, tmp_path / "other"), resume=str(pretrained))
    with pytest.raises(CheckpointError, match=r"no last\.ckpt here to resume from"):
        finetune(finetune_settings(data, tmp_path / "other"), resume=str(tmp_path))


def test_a_run_is_not_overwritten_and_a_finished_one_is_left_alone(data: Path, tmp_path: Path) -> None:
    settings = finetune_settings(data, tmp_path / "run", steps=2)
    finetune(settings)
    with pytest.raises(
        SettingsError, match="holds a run already: go on with --resume auto, or give another folder with -o"
    ):
        finetune(settings)
    before = (tmp_path / "run" / "last.ckpt").read_bytes()
    finetune(settings, resume="auto")
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before


OWN_COLUMNS = {
    "siamese": {"loss_global", "loss_region", "monitor_view_cosine"},
    "updetr": {"loss_feature"},
    "detreg": {"loss_embedding"},
}


@pytest.mark.parametrize("method", PRETEXTS)
def test_pretraining_says_what_it_is_and_leaves_a_detector_to_finetune(
    method: str, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="siamdetr"):
        result = pretrain(pretrain_settings(data, tmp_path / "run", method=method, steps=1))
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("Self-supervised pretraining: no labels are used.")
    assert any("The data has labels (16 boxes)" in text and "siamdetr finetune --data" in text for text in messages)
    detector, metadata = load_model(result.folder)
    assert metadata.class_names == ("object",)
    assert metadata.lineage == (f"pretext: {method} on {data}, 1 steps",)
    assert detector.settings.num_classes == 1
    row = rows(result.folder)[-1]
    assert OWN_COLUMNS[method] | {"monitor_query_std", "monitor_matched_iou"} <= set(row)
    assert (tmp_path / "proposals").is_dir() is (method != "updetr")  # whose patches are random
    assert describe(result.folder)["kind"] == f"run folder of pretraining ({method})"

    tuned = finetune(finetune_settings(data, tmp_path / "tuned", steps=1, init=str(result.folder), detector={}))
    assert tuned.fresh == ("class_head",)
    assert load_model(tuned.folder)[1].lineage[0] == f"pretext: {method} on {data}, 1 steps"


def test_pretraining_uses_stored_proposals_and_says_how_many_are_missing(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = open_dataset(data, split="train")
    files = [str(tmp_path / f"{i}.arrow") for i in range(2)]
    for i, file in enumerate(files):
        compute_proposals(index.subset([2 * i, 2 * i + 1]), file, recipe=Recipe("random"))
    settings = pretrain_settings(data, tmp_path / "run", steps=4)
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"proposals": tuple(files)})})
    with caplog.at_level(logging.INFO, logger="siamdetr"):
        pretrain(settings)
    assert "4 images are missing (of 8 in" in caplog.text
    assert "Proposals: 4 images, random draws=100 kept=100" in caplog.text
    assert not (tmp_path / "proposals").exists()
    assert "4 images had no stored proposals: each got EdgeBoxes whenever it was read" in caplog.text


def test_a_pretrained_start_is_taken_over_but_for_the_class_head(
    data: Path, tmp_path: Path, pretrained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The detector's settings come with the start: none are given here."""
    settings = finetune_settings(data, tmp_path / "run", steps=1, init=str(pretrained), detector={})
    with caplog.at_level(logging.INFO, logger="siamdetr"):
        result = finetune(settings)
    assert result.fresh == ("class_head",)
    assert "starting afresh: class_head" in caplog.text
    shape, metadata = read_metadata(result.folder)
    assert (shape.backbone, shape.dim, shape.classifier) == ("test_resnet.r160_in1k", 32, "focal")
    assert [step.partition(":")[0] for step in metadata.lineage] == ["pretext", "finetune"]
    before, after = load_model(pretrained)[0].state_dict(), load_model(result.folder)[0].state_dict()
    body = [name for name, value in before.items() if value.is_floating_point() and not name.startswith("class_head")]
    largest = max(float((before[name] - after[name]).abs().max()) for name in body)
    assert largest < 1e-3  # one small step away

    wider = finetune_settings(data, tmp_path / "wider", init=str(pretrained), detector={"dim": 64})
    with pytest.raises(
        CheckpointError, match=r"does not fit this detector \(.*dim: 32 there, 64 here\. Use its settings"
    ):
        finetune(wider)


def test_the_number_of_classes_is_the_datas(data: Path, tmp_path: Path) -> None:
    settings = finetune_settings(data, tmp_path / "run", detector={**DETECTOR, "num_classes": 5})
    with pytest.raises(SettingsError, match=r"detector\.num_classes is 5, but the data has 2 classes \(red, blue\)"):
        finetune(settings)


@pytest.mark.parametrize(("what", "moving"), [("backbone", False), ("body", False), ("none", True)])
def test_freezing(data: Path, tmp_path: Path, what: str, moving: bool) -> None:
    schedule, rates = {"name": "constant"}, {"lr": 1e-2, "lr_backbone": 1e-2}
    settings = finetune_settings(
        data, tmp_path / "run", steps=2, freeze=what, schedule=schedule, optimizer=rates, checkpoint_every=1
    )
    finetune(settings)
    before, after = (read_checkpoint(tmp_path / "run" / name)["state_dict"] for name in ("previous.ckpt", "last.ckpt"))
    changed = {name.split(".")[1] for name in after if not torch.equal(before[name], after[name])}
    assert ("backbone" in changed) is moving
    assert ("encoder" in changed) is (what != "body")
    assert {"class_head", "box_head"} <= changed


def test_averaged_weights_are_what_is_saved(data: Path, tmp_path: Path) -> None:
    finetune(finetune_settings(data, tmp_path / "run", ema=0.9, optimizer={"lr": 1e-2}))
    state = read_checkpoint(tmp_path / "run" / "last.ckpt")
    shadow = next(value["shadow"] for value in state["callbacks"].values() if "shadow" in value)
    detector = load_model(tmp_path / "run" / "last.safetensors")[0].state_dict()
    assert all(torch.equal(detector[name], value) for name, value in shadow.items())
    assert not torch.equal(detector["class_head.weight"], state["state_dict"]["detector.class_head.weight"])


def test_early_stopping(data: Path, tmp_path: Path) -> None:
    settings = finetune_settings(
        data, tmp_path / "run", steps=20, val_every=0.25, early_stopping=2, optimizer={"lr": 1e-12, "lr_backbone": 0}
    )
    assert finetune(settings).steps == 3  # the first is the best so far, then two that are no better
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")["step"] == 3


def test_one_batch_can_be_overfitted(data: Path, tmp_path: Path) -> None:
    shape = {**DETECTOR, "dropout": 0.0}
    finetune(
        finetune_settings(
            data,
            tmp_path / "run",
            steps=60,
            overfit_batch=True,
            detector=shape,
            log_every=10,
            checkpoint_every=100,
            optimizer={"lr": 2e-3, "lr_backbone": 1e-4},
            schedule={"name": "constant"},
        )
    )
    losses = [float(row["loss"]) for row in rows(tmp_path / "run") if row["loss"]]
    assert losses[-1] < 0.6 * losses[0]


def run_in_two_processes(script: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert found.returncode == 0, found.stderr[-3000:]


def test_two_processes_train_what_one_with_twice_the_batch_trains(tmp_path: Path) -> None:
    """Losses to 1e-5 (dropout 0), where the order of some batches leaves one process without an object.

    In the evaluation each process predicts on its share of the images, and the figures are those of one process.
    """
    data = write_data(tmp_path / "data", train=8, empty=(1, 2, 3, 5, 8))
    common = {
        "steps": 8,
        "val_every": 100,
        "detector": {**DETECTOR, "dropout": 0.0},
        "images": {"size": 64, "augment": "none"},
    }
    finetune(finetune_settings(data, tmp_path / "one", batch_size=2, **common))
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            import torch
            from pathlib import Path
            sys.path.insert(0, {str(TESTS)!r})
            from helpers.training_data import finetune_settings
            from siamdetr.training.finetune_module import FinetuneModule
            from siamdetr.training.finetune import finetune
            torch.set_num_threads(1)
            step = FinetuneModule.training_step
            def counted(self, batch, batch_idx):
                with open(f"{tmp_path}/counts{{self.global_rank}}", "a") as file:
                    file.write(f"{{sum(batch.targets.counts)}}\\n")
                return step(self, batch, batch_idx)
            FinetuneModule.training_step = counted
            from siamdetr.training import finetune as module
            detect = module.detect
            def noted(*arguments, positions, **options):
                with open(f"{tmp_path}/share{{torch.distributed.get_rank()}}", "a") as file:
                    file.write(f"{{list(positions)}}\\n")
                return detect(*arguments, positions=positions, **options)
            module.detect = noted
            class Bars(module.Silent):
                def begin(self, task, total, done=0):
                    with open(f"{tmp_path}/bars{{module.launch().is_first}}", "a") as file:
                        file.write(task)
            finetune(finetune_settings(Path({str(data)!r}), Path({str(tmp_path / "two")!r}), batch_size=1, **{common!r}), progress=Bars())
            """
        )
    )
    run_in_two_processes(script)
    counts = [(tmp_path / f"counts{rank}").read_text().split() for rank in range(2)]
    assert [(tmp_path / f"share{rank}").read_text().split("\n")[0] for rank in range(2)] == ["[0, 2]", "[1]"]
    assert "evaluate" in (tmp_path / "barsTrue").read_text()
    assert "evaluate" not in (tmp_path / "barsFalse").read_text()
    figures = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two")]
    assert figures[0]["metrics"] == pytest.approx(figures[1]["metrics"], abs=1e-4)
    pairs = list(zip(*counts, strict=True))
    assert any((a == "0") != (b == "0") for a, b in pairs)
    assert ("0", "0") in pairs
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for key in ("loss", "loss_class", "loss_bbox", "loss_giou"):
            if one[key]:
                assert float(two[key]) == pytest.approx(float(one[key]), abs=1e-5), (one["step"], key)
    ours, theirs = (read_checkpoint(tmp_path / name / "last.ckpt")["state_dict"] for name in ("one", "two"))
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], atol=1e-5, rtol=1e-4)


def test_two_processes_pretrain_what_one_with_twice_the_batch_pretrains(data: Path, tmp_path: Path) -> None:
    """Losses and weights of each method.

    Left out is what each process draws itself, or what needs statistics of a process's own batch.
    """
    common = {
        "steps": 3,
        "detector": {**DETECTOR, "dropout": 0.0},
        "siamese": {"num_regions": 5, "size": [64, 64], "crop_size": 32, "box_jitter": 0.0, "weight_global": 0.0},
        "updetr": {"num_regions": 5, "size": [64, 64], "crop_size": 32, "mask_ratio": 0.0},
        "detreg": {"num_regions": 8, "size": [64, 64], "crop_size": 32, "embedding": "last"},
    }
    for method in PRETEXTS:
        pretrain(pretrain_settings(data, tmp_path / f"{method}1", method=method, batch_size=2, **common))
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            import torch
            from pathlib import Path
            sys.path.insert(0, {str(TESTS)!r})
            from helpers.training_data import pretrain_settings
            from siamdetr.training.pretrain import pretrain
            torch.set_num_threads(1)
            for method in {list(PRETEXTS)!r}:
                folder = Path({str(tmp_path)!r}) / (method + "2")
                pretrain(pretrain_settings(Path({str(data)!r}), folder, method=method, batch_size=1, **{common!r}))
            """
        )
    )
    run_in_two_processes(script)
    for method in PRETEXTS:
        both = (rows(tmp_path / f"{method}{count}") for count in (1, 2))
        one, two = ([row for row in found if row["loss"]] for found in both)  # other rows hold the regions' monitors
        assert len(one) == len(two) == 3
        for ours, theirs in zip(one, two, strict=True):
            for key in ("loss", *(key for key in ours if key.startswith("loss_"))):
                assert float(theirs[key]) == pytest.approx(float(ours[key]), rel=1e-5, abs=1e-5), (method, key)
        weights = [read_checkpoint(tmp_path / f"{method}{n}" / "last.ckpt")["state_dict"] for n in (1, 2)]
        for name in weights[0]:
            torch.testing.assert_close(weights[1][name], weights[0][name], atol=2e-5, rtol=1e-4, msg=f"{method} {name}")


def old_normalization(run: Path) -> Path:
    """The run's model file as earlier versions wrote it, before backbones had normalisations of their own.

    Only its metadata changes.
    """
    detector, metadata = load_model(run)
    spec = metadata.preprocessing.normalized_by(IMAGENET)
    save_model(run / "last.safetensors", detector, metadata.model_copy(update={"preprocessing": spec}))
    return run


def normalization_of(run: Path) -> Normalization:
    return read_metadata(run)[1].preprocessing.normalization


def test_a_run_is_normalised_as_its_backbone_expects_and_says_so_in_file_and_checkpoint(pretrained: Path) -> None:
    half = (0.5, 0.5, 0.5)
    assert normalization_of(pretrained) == (half, half)
    assert read_checkpoint(pretrained / "last.ckpt")["siamdetr"]["normalization"] == [list(half), list(half)]


def test_finetuning_takes_the_normalization_of_what_it_starts_from_and_says_so(
    data: Path, pretrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    start = old_normalization(Path(shutil.copytree(pretrained, tmp_path / "old")))
    result = finetune(finetune_settings(data, tmp_path / "tuned", init=str(start), steps=1))
    assert normalization_of(result.folder) == IMAGENET
    said = [record.getMessage() for record in caplog.records]
    assert sum("normalised as there: mean 0.485 0.456 0.406, std 0.229 0.224 0.225" in text for text in said) == 1
    strange = [text for text in said if str(start) in text and "expect mean 0.5 0.5 0.5, std 0.5 0.5 0.5" in text]
    assert len(strange) == 1


def test_a_resumed_run_keeps_its_normalization(data: Path, tmp_path: Path) -> None:
    """A checkpoint that does not name it is from when every run used ImageNet's figures."""
    settings = pretrain_settings(data, tmp_path / "run")
    with pytest.raises(Interrupted):
        pretrain(settings, progress=SignalAt(signal.SIGTERM, "train", 2))
    checkpoint = read_checkpoint(tmp_path / "run" / "last.ckpt")
    del checkpoint["siamdetr"]["normalization"]
    AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "run" / "last.ckpt")
    pretrain(settings, resume="auto")
    assert normalization_of(tmp_path / "run") == IMAGENET


def test_backbone_weights_from_a_model_file_bring_their_normalization(
    data: Path, pretrained: Path, tmp_path: Path
) -> None:
    start = old_normalization(Path(shutil.copytree(pretrained, tmp_path / "old")))
    weights = str(start / "last.safetensors")
    result = pretrain(pretrain_settings(data, tmp_path / "run", backbone_weights=weights, steps=1))
    assert normalization_of(result.folder) == IMAGENET
