"""Batch scripts, rendered and handed to sbatch by submitit. What `render` gives is what `submit_job` sends.

The script runs a `StageJob` (slurm/stage_job.py) on the first node, which starts the stage's step.
"""

import io
import shlex
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from reasonforge.errors import RequestError, StageError


def render(folder: Path, python: str, parameters: Mapping[str, Any], array: int | None = None) -> str:
    """The text of a batch script.

    Args:
        folder: where submitit keeps the job's files; below the run directory.
        python: the interpreter on the first node.
        parameters: submitit's names; None leaves one out.
        array: how many tasks an array has; None for a job of its own.
    Raises RequestError for a value that an #SBATCH line cannot hold.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    given = {name: value for name, value in parameters.items() if value is not None}
    for name, value in given.items():
        if name != "setup" and any(character in str(value) for character in "\n\r\0"):
            raise RequestError(
                name, f"{str(value)[:60]!r} has a line break, which ends an #SBATCH line", "leave it out"
            )
    script: str = _make_sbatch_string(
        command=f"{shlex.quote(python)} -u -m submitit.core._submit {shlex.quote(str(folder))}",
        folder=folder,
        map_count=array,
        use_srun=False,
        stderr_to_stdout=True,
        wckey=None,
        **given,
    )
    return script


def submit_job(folder: Path, script: str, work: Sequence[Any], flags: Sequence[str]) -> str:
    """Submit a script; returns Slurm's id of the job, or of the array.

    Args:
        work: what runs, one callable for each task of an array, or the only one.
        flags: what sbatch is told beyond the script: dependencies and excluded nodes, which are known only now.
    Raises StageError with sbatch's own words where it refuses.
    """
    from submitit.core.utils import DelayedSubmission, FailedJobError

    folder.mkdir(parents=True, exist_ok=True)
    said = io.StringIO()
    try:
        with redirect_stderr(said):  # submitit prints what sbatch said, and raises it too
            job = _executor(folder, script, flags)._submit_command("")
    except FailedJobError as error:
        raise StageError(f"sbatch: {_reason(str(error))}") from None
    names = [f"{job.job_id}_{number}" for number in range(len(work))] if len(work) > 1 else [str(job.job_id)]
    for name, function in zip(names, work, strict=True):
        path = folder / f"{name}_submitted.pkl"
        temporary = path.with_name(f".{path.name}.tmp")
        DelayedSubmission(function).dump(temporary)
        temporary.replace(path)
    return str(job.job_id)


def _executor(folder: Path, script: str, flags: Sequence[str]) -> Any:
    """submitit's executor for Slurm, but with our script and flags."""
    from submitit.slurm.slurm import SlurmExecutor

    class Executor(SlurmExecutor):  # type: ignore[misc]
        def _make_submission_file_text(self, *_: str) -> str:
            return script

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            return ["sbatch", *flags, str(submission_file_path)]

    return Executor(folder)


def _reason(said: str) -> str:
    """What sbatch said, in one line."""
    lines = [line.strip().removeprefix("sbatch: error: ") for line in said.splitlines()]
    return "; ".join(line for line in lines if line)[:400]
