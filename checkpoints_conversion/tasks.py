"""One conversion by several processes, on one machine or many: `--task N --tasks M`, or the tasks of a Slurm step.

`publishing` gives each task whole files of the result. They meet only in files of a shared directory, by rename.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from reasonforge.errors import RequestError, StageError

PATIENCE_S = 600.0
"""How long a task waits for others of which nothing is seen: well above the minute that NFS may hide a new file."""

_LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True)
class Task:
    """One of the processes that do a conversion; the first of them leads: it prepares and publishes."""

    number: int = 0
    tasks: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the first task, or the only one."""
        return self.number == 0

    def own(self, sizes: Mapping[str, int]) -> frozenset[str]:
        """The files that this task writes, of all with their sizes: dealt from the largest on, the same everywhere."""
        dealt = sorted(sizes, key=lambda name: (-sizes[name], name))
        return frozenset(dealt[self.number :: self.tasks])

    def __str__(self) -> str:
        return f"task {self.number} of {self.tasks}"


ALONE = Task()


def this_task(number: int | None, tasks: int | None, environment: Mapping[str, str]) -> Task:
    """The task that the command line names; without it, the task of a Slurm step of several, if one runs this process.

    srun sets SLURM_STEP_NUM_TASKS and SLURM_PROCID in each task; a batch script alone has a SLURM_PROCID, but no step.
    Raises RequestError on a number that is none of the tasks.
    """
    if number is None and tasks is None:
        try:
            found = Task(int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"]))
        except (KeyError, ValueError):
            return ALONE
        return found if found.tasks > 1 and 0 <= found.number < found.tasks else ALONE
    if number is None and tasks == 1:
        return ALONE
    if number is None or tasks is None:
        raise RequestError("--task", "one of --task and --tasks is missing", "give both, as in --task 0 --tasks 4")
    if not 0 <= number < tasks:
        raise RequestError("--task", f"found {number} of {tasks}", f"tasks are numbered from 0 to {max(tasks, 1) - 1}")
    return Task(number, tasks)


def wait_until(happened: Callable[[], bool], activity: Callable[[], object], lacking: Callable[[], str]) -> None:
    """Wait for other tasks, as long as they do something.

    Args:
        activity: what is seen of the others; any change of it starts the patience anew.
        lacking: says what has not happened.
    Raises StageError, saying that, when nothing has changed for PATIENCE_S.
    """
    seen, since, pause = activity(), time.monotonic(), 0.05
    while not happened():
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE_S)
        if (found := activity()) != seen:
            seen, since = found, time.monotonic()
        elif time.monotonic() - since > PATIENCE_S:
            raise StageError(
                f"{lacking()}, and nothing was done for {PATIENCE_S:.0f} s; start every task again, and it goes on "
                "(with --tasks 1 one process does it all)"
            )
