"""The pieces of training that need no model: schedules, atomic checkpoints, metrics.csv."""

from __future__ import annotations

import logging
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from siamdetr.drawing.html_page import read_metrics
from siamdetr.errors import CheckpointError
from siamdetr.model_file import digest
from siamdetr.pretext.run_settings import PretrainSettings
from siamdetr.settings.base import to_json
from siamdetr.settings.training import ScheduleSettings
from siamdetr.system.atomic_file import atomic_write, sweep_temporaries
from siamdetr.system.signals import SignalWatch
from siamdetr.training.callbacks.saver import agreed
from siamdetr.training.checkpoints.checkpoint_file import newest_valid, read_checkpoint
from siamdetr.training.checkpoints.checkpoint_io import AtomicCheckpointIO
from siamdetr.training.checkpoints.run_state import RunState
from siamdetr.training.metrics_log import MetricsCsv
from siamdetr.training.optim import rate_factor
from siamdetr.training.run_folder import RunFolder, check_same_run

CONTENT: dict[str, Any] = {"siamdetr": {"format_version": 1}, "weights": {"a": torch.arange(6.0).view(2, 3)}, "step": 3}


def forked(work: Callable[[], None]) -> int:
    """Start `work` in a child process; returns its id.

    Forking saves the seconds of importing torch again.
    """
    process = os.fork()
    if process == 0:
        work()
        os._exit(0)
    return process


def test_step_schedule_drops_to_a_tenth() -> None:
    factor = rate_factor(ScheduleSettings(name="step", drop_at=0.8), 100)
    assert [factor(step) for step in (0, 79, 80, 99)] == [1, 1, 0.1, 0.1]


def test_warmup_rises_and_cosine_falls() -> None:
    factor = rate_factor(ScheduleSettings(name="cosine", warmup=0.1, final=0.0), 100)
    values = [factor(step) for step in range(101)]
    assert values[:10] == sorted(values[:10])
    assert values[0] > 0
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[10] == 1.0
    assert values[100] == pytest.approx(0, abs=1e-12)


def test_onecycle_starts_at_a_twentyfifth_and_peaks_at_a_third_or_so() -> None:
    factor = rate_factor(ScheduleSettings(name="onecycle"), 100)
    assert factor(0) == pytest.approx(1 / 25)
    assert factor(30) == 1.0
    assert factor(100) == pytest.approx(0.01)


def test_a_process_of_a_training_agrees_on_the_signal_that_came() -> None:
    with SignalWatch() as watch:
        assert agreed(watch, torch.device("cpu")) is None
        watch.stop(signal.SIGTERM)
        assert agreed(watch, torch.device("cpu")) == signal.SIGTERM


def test_checkpoint_comes_back_and_the_one_before_it_is_kept(tmp_path: Path) -> None:
    saver = AtomicCheckpointIO()
    saver.save_checkpoint(CONTENT, tmp_path / "last.ckpt")
    saver.save_checkpoint({**CONTENT, "step": 4}, tmp_path / "last.ckpt")
    loaded = saver.load_checkpoint(tmp_path / "last.ckpt")
    assert loaded["step"] == 4
    assert torch.equal(loaded["weights"]["a"], CONTENT["weights"]["a"])
    assert read_checkpoint(tmp_path / "previous.ckpt")["step"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_resume_falls_back_to_the_newest_that_is_whole(tmp_path: Path) -> None:
    assert newest_valid(tmp_path) is None
    saver = AtomicCheckpointIO()
    saver.save_checkpoint(CONTENT, tmp_path / "last.ckpt")
    saver.save_checkpoint({**CONTENT, "step": 4}, tmp_path / "last.ckpt")
    last = tmp_path / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    found = newest_valid(tmp_path)
    assert found is not None
    path, checkpoint, problems = found
    assert (path.name, checkpoint["step"]) == ("previous.ckpt", 3)
    assert "last.ckpt: truncated, damaged" in problems[0]
    (tmp_path / "previous.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint can be read"):
        newest_valid(tmp_path)


def test_a_foreign_or_damaged_checkpoint_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_checkpoint(path)
    evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR."
    path.write_bytes(evil)
    with pytest.raises(CheckpointError, match=r"not a checkpoint of siamdetr \(.*nothing in it was executed"):
        read_checkpoint(path)
    assert not (tmp_path / "owned").exists()
    torch.save({"model": {}}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of siamdetr; `siamdetr convert` reads official ones"):
        read_checkpoint(path)
    torch.save({"siamdetr": {"format_version": 99}}, path)
    with pytest.raises(CheckpointError, match="checkpoint format 99, but this siamdetr reads up to 1; update siamdetr"):
        read_checkpoint(path)
    sealed = {**CONTENT, "sha256": digest(CONTENT)}
    sealed["weights"] = {"a": CONTENT["weights"]["a"] + 1e-3}
    torch.save(sealed, path)
    with pytest.raises(CheckpointError, match="damaged: its contents do not have the SHA-256"):
        read_checkpoint(path)


def test_kill_during_a_save_leaves_a_whole_file(tmp_path: Path) -> None:
    """SIGKILL at random moments of a loop of saves: the file always loads; old temporary files go."""
    path = tmp_path / "last.ckpt"

    def save_for_ever() -> None:
        saver, weights = AtomicCheckpointIO(), torch.randn(300_000)
        for step in range(10**6):
            saver.save_checkpoint({**CONTENT, "w": weights, "step": step}, path)

    for moment in range(12):
        process = forked(save_for_ever)
        deadline = time.monotonic() + 30
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.003 * moment)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        assert read_checkpoint(path)["step"] >= 0
    sweep_temporaries(tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_full_disk_keeps_the_old_file_and_says_so(tmp_path: Path) -> None:
    """A limit on the file size simulates a full disk: the write fails half-way."""
    path, answer = tmp_path / "last.ckpt", tmp_path / "answer.txt"
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)

    def save_too_much() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            AtomicCheckpointIO().save_checkpoint({**CONTENT, "w": torch.zeros(10**6), "step": 4}, path)
        except CheckpointError as error:
            answer.write_text(str(error))

    os.waitpid(forked(save_too_much), 0)
    text = answer.read_text()
    assert f"{path}: the disk is full (" in text
    assert "the file that was there is intact. Free some space, then go on with --resume auto" in text
    assert read_checkpoint(path)["step"] == 3
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(file: IO[bytes]) -> None:
        file.write(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        atomic_write(tmp_path / "file", fail)
    assert not list(tmp_path.iterdir())


def test_metrics_grow_columns_and_forget_the_lost_future(tmp_path: Path) -> None:
    log = MetricsCsv(tmp_path, resume_step=0)
    log.log_metrics({"loss": 2.0}, step=10)
    log.log_metrics({"val_ap": 0.5}, step=10)
    log.log_metrics({"loss": 1.0}, step=20)
    assert read_metrics(tmp_path) == [{"step": 10, "loss": 2}, {"step": 10, "val_ap": 0.5}, {"step": 20, "loss": 1}]
    MetricsCsv(tmp_path, resume_step=10).log_metrics({"loss": 1.5}, step=20)
    assert read_metrics(tmp_path)[-1] == {"step": 20, "loss": 1.5}
    assert len(read_metrics(tmp_path)) == 3


@pytest.mark.parametrize(
    "damage",
    ["30,0.", "30,0.5,7\r\n", "30\r\n", "30,abc\r\n", ",0.5\r\n", "\0\0\0\r\n", "\x80\x81"],
)
def test_a_damaged_row_of_metrics_is_left_out_and_said(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = MetricsCsv(tmp_path, resume_step=0)
    log.log_metrics({"loss": 2.0}, step=10)
    log.log_metrics({"loss": 1.0}, step=20)
    with (tmp_path / "metrics.csv").open("ab") as file:
        file.write(damage.encode("latin-1"))
    whole = [{"step": 10, "loss": 2}, {"step": 20, "loss": 1}]
    with caplog.at_level(logging.WARNING):
        assert read_metrics(tmp_path) == whole
    assert "metrics.csv: damaged rows that are left out: 1" in caplog.text
    MetricsCsv(tmp_path, resume_step=40).log_metrics({"loss": 0.5}, step=50)
    assert read_metrics(tmp_path) == [*whole, {"step": 50, "loss": 0.5}]


def test_a_run_of_before_a_setting_existed_goes_on(tmp_path: Path) -> None:
    settings = PretrainSettings.model_validate({"data": {"paths": ["x"]}, "steps": 3})
    older = to_json(settings)
    del older["tf32"], older["worker_timeout"]
    state = RunState(stage=settings.stage, settings=older, step=1, world_size=1, torch=torch.__version__)
    run = RunFolder(tmp_path, tmp_path / "last.ckpt", {}, state)
    assert check_same_run(run, settings, {}) == ()
    with pytest.raises(CheckpointError, match="tf32: 'convolutions' in the checkpoint, 'all' now"):
        check_same_run(run, settings.model_copy(update={"tf32": "all"}), {})
