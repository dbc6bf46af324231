"""The shard of the images that this process computes, where several machines share a data set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from siamdetr.data.index import DetectionIndex
from siamdetr.errors import DataError
from siamdetr.system.launcher import is_slurm_step

# (number, count) of torchrun, of the tasks of SLURM's srun and of SLURM's job arrays; the first pair that is set counts.
_TASKS = ("SLURM_PROCID", "SLURM_NTASKS")
_VARIABLES = (
    ("RANK", "WORLD_SIZE"),
    _TASKS,
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
)


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, counted from 0: every `count`-th image."""

    number: int = 0
    count: int = 1

    def of(self, index: DetectionIndex) -> DetectionIndex:
        """The images of this part."""
        return index.subset(range(self.number, len(index), self.count)) if self.count > 1 else index

    def name(self, path: Path) -> Path:
        """The file of this part: `proposals.arrow` becomes `proposals-0-of-4.arrow`; one part keeps the name."""
        return path if self.count == 1 else path.with_stem(f"{path.stem}-{self.number}-of-{self.count}")


def find_shard(text: str | None, environment: Mapping[str, str] = os.environ) -> Shard:
    """The requested part, or the one that torchrun or SLURM assigns to this process, or all images.

    Args:
        text: "i/n", i from 0 to n - 1; None: read the environment.
        environment: variables.
    Raises:
        DataError: not a valid part; the message names its origin.
    """
    if text is not None:
        return _shard(*_halves(text), f"--shard {text}")
    for number, count in _VARIABLES:
        if (number, count) == _TASKS and not is_slurm_step(environment):
            continue  # a shell of salloc or sbatch: SLURM announces tasks there that nobody starts
        if number in environment and count in environment:
            source = f"{number}={environment[number]}, {count}={environment[count]}"
            try:
                first = int(environment.get("SLURM_ARRAY_TASK_MIN", 0)) if "ARRAY" in number else 0
                part = int(environment[number]) - first, int(environment[count])
            except ValueError:
                raise DataError(
                    f"{source}: expected two numbers, as torchrun and SLURM set them; give --shard i/n"
                ) from None
            return _shard(*part, source)
    return Shard()


def _halves(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit()):
        raise DataError(f"--shard got '{text}', expected i/n such as 0/4, counted from 0")
    return int(number), int(count)


def _shard(number: int, count: int, source: str) -> Shard:
    if not 0 <= number < count:
        raise DataError(f"{source}: expected a part from 0 to n - 1 of n, such as 0/4 to 3/4")
    return Shard(number, count)
