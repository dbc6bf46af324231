"""The launcher of this process, its rank and the number of processes.

The launcher is torchrun, SLURM's srun, Lightning (for `devices`), or a person. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Launch:
    """How this process was started.

    Attributes:
        by: who started it; "lightning" starts the further processes of a run with `devices` above 1.
        world_size: processes that were started together; None: as the settings say.
        number: of this process among them (its rank); None: it follows from node and local number.
        local_number: of this process on its machine.
        node: of this machine.
        num_nodes: machines; None: as the settings say.
        idle_tasks: tasks that SLURM announces and nobody started.
    """

    by: Literal["torchrun", "slurm", "lightning", "person"] = "person"
    world_size: int | None = None
    number: int | None = None
    local_number: int = 0
    node: int = 0
    num_nodes: int | None = None
    idle_tasks: int = 0

    def rank(self, devices: int = 1) -> int:
        """The number of this process, where each machine has `devices` of them."""
        return self.node * devices + self.local_number if self.number is None else self.number

    @property
    def is_first(self) -> bool:
        """Whether this process writes what the run writes."""
        return self.rank() == 0


def launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Read from the environment how this process was started.

    SLURM announces tasks in every shell of a job (`salloc`, a script of `sbatch`), but only srun starts them. So its
    variables are used only in a step of srun, and only those of the step.
    """

    def number(*names: str, default: int = 0) -> int:
        return next((int(environment[name]) for name in names if environment.get(name, "").isdigit()), default)

    if "RANK" in environment and "WORLD_SIZE" in environment:
        world, local_world = number("WORLD_SIZE", default=1), number("LOCAL_WORLD_SIZE", default=1)
        return Launch(
            "torchrun",
            world,
            number("RANK"),
            number("LOCAL_RANK"),
            number("GROUP_RANK", "NODE_RANK"),
            max(1, world // max(1, local_world)),
        )
    tasks = number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", default=1)
    if tasks > 1 and is_slurm_step(environment):
        nodes = number("SLURM_STEP_NUM_NODES", "SLURM_NNODES", default=1)
        return Launch(
            "slurm", tasks, number("SLURM_PROCID"), number("SLURM_LOCALID"), number("SLURM_NODEID"), max(1, nodes)
        )
    idle = 0 if is_slurm_step(environment) else number("SLURM_NTASKS", default=1) - 1
    by: Literal["lightning", "person"] = "lightning" if "LOCAL_RANK" in environment else "person"
    return Launch(
        by, local_number=number("LOCAL_RANK"), node=number("NODE_RANK", "GROUP_RANK"), idle_tasks=max(0, idle)
    )


def is_slurm_step(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process.

    A shell of the job has SLURM_JOB_ID, and perhaps SLURM_PROCID=0, but no step's number.
    """
    if "SLURM_STEP_ID" in environment or "SLURM_JOB_ID" not in environment:
        return "SLURM_PROCID" in environment
    return environment.get("SLURM_PROCID", "0") != "0"
