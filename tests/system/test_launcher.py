"""The number of processes of a run: started ones count, announced ones do not."""

from __future__ import annotations

import pytest

from siamdetr.system.launcher import Launch, launch

JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_NNODES": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Launch()),
        ({"WORLD_SIZE": "8"}, Launch()),  # left over from something else: nobody numbered this process
        (
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"},
            Launch("torchrun", 8, 5, 1, 1, 2),
        ),
        ({"LOCAL_RANK": "2", "NODE_RANK": "0", "WORLD_SIZE": "4"}, Launch("lightning", local_number=2)),
        # `salloc -n 4`, then one process; `sbatch -n 4` without srun
        ({**JOB, "SLURM_JOB_NAME": "interactive"}, Launch(idle_tasks=3)),
        ({**JOB, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, Launch(idle_tasks=3)),
        # srun: the step's numbers, not the job's
        (
            {**JOB, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
            Launch("slurm", 2, 1, 1, 0, 1),
        ),
        ({**JOB, "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}, Launch("slurm", 4, 0, 0, 0, 1)),
        # `srun -n 1 --pty bash` in a job of four tasks
        ({**JOB, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, Launch()),
    ],
)
def test_what_was_started_counts(environment: dict[str, str], expected: Launch) -> None:
    assert launch(environment) == expected


def test_only_one_process_of_all_machines_is_first() -> None:
    ranks = [Launch("lightning", local_number=local, node=node) for node in range(2) for local in range(2)]
    assert [one.rank(2) for one in ranks] == [0, 1, 2, 3]
    assert [one.is_first for one in ranks] == [True, False, False, False]
