"""metrics.csv and TensorBoard events: one row a logging step or evaluation.

A resumed run goes on in the same file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger
from torch.utils.tensorboard.writer import SummaryWriter

from siamdetr.drawing.html_page import read_metrics
from siamdetr.files import METRICS_FILE, TENSORBOARD
from siamdetr.system.atomic_file import atomic_text


class _RunLogger(Logger):
    """Methods that Lightning requires of every logger, without effect here."""

    @property
    def version(self) -> str:
        """Required by Lightning."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **keywords: Any) -> None:
        """They are in config.yaml."""


class MetricsCsv(_RunLogger):
    """Writes each row at once. A new column rewrites the file.

    Rows after `resume_step`, from the interrupted session, are removed.
    """

    def __init__(self, folder: Path, resume_step: int) -> None:
        super().__init__()
        self._path = folder / METRICS_FILE
        self._rows = [row for row in read_metrics(folder) if row["step"] <= resume_step] if resume_step else []
        self._columns = ["step"]
        self._widen(self._rows)
        self._rewrite()

    @property
    def name(self) -> str:
        """Required by Lightning."""
        return "csv"

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One row."""
        row = {"step": float(step or 0), **metrics}
        self._rows.append(row)
        if self._widen([row]):
            self._rewrite()
        else:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(_cells(row))

    def _widen(self, rows: list[dict[str, float]]) -> bool:
        new = [key for row in rows for key in row if key not in self._columns]
        self._columns += dict.fromkeys(new)
        return bool(new)

    def _rewrite(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(_cells(row) for row in self._rows)
        atomic_text(self._path, text.getvalue())


class TensorBoardEvents(_RunLogger):
    """Events under <run>/tensorboard, without the empty hparams file that Lightning's own logger leaves."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        super().__init__()
        self._writer = SummaryWriter(str(folder / TENSORBOARD), purge_step=resume_step + 1 if resume_step else None)

    @property
    def name(self) -> str:
        """Required by Lightning."""
        return "tensorboard"

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One point a metric."""
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush to disk."""
        self._writer.close()


def _cells(row: Mapping[str, float]) -> dict[str, str]:
    return {key: f"{value:.0f}" if key == "step" else f"{value:.8g}" for key, value in row.items()}
