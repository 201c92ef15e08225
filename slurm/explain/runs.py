"""Explains the failed stages of a run from its logs and events and, where it was submitted, from Slurm's records.

The CLI calls it.
"""

from dataclasses import dataclass
from pathlib import Path

from reasonforge.errors import RequestError, nearest
from recipes.run_directory import RunDirectory
from slurm.explain.engine import Diagnosis, Facts, Log, explain
from slurm.explain.rules import Table


@dataclass(frozen=True)
class StageDiagnosis:
    """Why a stage of a run failed."""

    stage: str
    state: str
    """As `reasonforge status` says it: failed, interrupted."""
    diagnosis: Diagnosis


def explain_run(table: Table, run: RunDirectory, stage: str | None = None) -> list[StageDiagnosis]:
    """Why each stage that failed or was interrupted did so, in the recipe's order; with `stage`, that one alone.

    Raises RequestError where the run has no such stage or the stage has left neither log nor event.
    """
    from slurm.facts import JobFacts, failures
    from slurm.plan import is_submitted
    from slurm.watch import look

    states = {entry["stage"]: entry["state"] for entry in look(run).entries}
    jobs = failures(run) if is_submitted(run) else {}
    if stage is not None and stage not in states:
        raise RequestError(str(run.root), f"no stage {stage!r}", nearest(stage, states))
    chosen = [stage] if stage else [name for name, state in states.items() if state in ("failed", "interrupted")]
    found = []
    for name in chosen:
        of_jobs = jobs.get(name, JobFacts())
        logs = [*_logs(run, name), *(log_of_file(path, run.root) for path in of_jobs.logs)]
        known = [*_events(run, name), *of_jobs.facts]
        if stage is not None and not logs and not known:
            raise RequestError(str(run.root), f"stage {name} has left no log and no event", "has it started?")
        found.append(StageDiagnosis(name, states[name], explain(table, logs, known)))
    return found


def _logs(run: RunDirectory, stage: str) -> list[Log]:
    """The logs of a stage: its own, and those of its ranks where it has several (STAGE.RANK.log, STAGE/*)."""
    own = [run.log(stage), *sorted((run.root / "logs").glob(f"{stage}.*.log"))]
    paths = [*own, *sorted((run.root / "logs" / stage).glob("*"))]
    return [log_of_file(path, run.root) for path in paths if path.is_file()]


def _events(run: RunDirectory, stage: str) -> list[Facts]:
    """What the last attempt's events say of its failure."""
    words: tuple[str, ...] = ()
    for event in run.read_events():
        if event.get("stage") == stage:
            words = (str(event["error"]),) if event["event"] == "stage_failed" and "error" in event else ()
    return [Facts(words=words)] if words else []


def log_of_file(path: Path, root: Path | None = None) -> Log:
    """A log that is a file; its name for people is the path, relative to `root` where that is given.

    Raises RequestError where it cannot be read.
    """
    if not path.is_file():
        raise RequestError(str(path), "no such file", "give the path of a log, or - for standard input")
    return Log(str(path.relative_to(root) if root else path), lambda: open(path, "rb"))
