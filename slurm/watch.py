"""What state each stage of a submitted run is in: receipts and events from the run directory, the rest from Slurm.

A look costs one squeue and one sacct, whatever the run's size. `status` shows it and `status --wait` waits by it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from reasonforge.errors import StageError
from recipes.recipe import load_resolved
from recipes.run_directory import RunDirectory
from recipes.status import run_status
from slurm import commands
from slurm.plan import FOLDER, ClusterPlan, is_submitted, load_cluster_plan
from slurm.submit import ENDED, submitted_ids

BAD = ("failed", "cancelled", "damaged")


@dataclass
class Tally:
    """The jobs (or tasks of arrays) of one stage, by what Slurm says of them."""

    live: list[commands.Queued] = field(default_factory=list)
    ended: list[commands.Accounted] = field(default_factory=list)
    """The last attempt of each that is not in the queue any more."""


@dataclass(frozen=True)
class Look:
    """One look at a run."""

    entries: list[dict[str, Any]]
    """A dictionary a stage: stage, type, state, jobs, and what is known beside: nodes, reason, error, progress. To the
    states of `recipes.status` come "waiting", "held up" (requeued) and "cancelled"."""
    silent: str | None
    """What Slurm's commands said where they failed; the states are then from the run directory alone."""

    @property
    def settled(self) -> bool:
        """Whether nothing is queued or running any more."""
        return self.silent is None and not any(
            entry["state"] in ("running", "waiting", "held up") for entry in self.entries
        )

    @property
    def good(self) -> bool:
        """Whether every stage is done."""
        return all(entry["state"] == "done" for entry in self.entries)


def look(run: RunDirectory) -> Look:
    """Look once at a run, submitted or local. Raises RequestError where the directory is no run."""
    entries = run_status(run)
    if not is_submitted(run):
        return Look(entries, None)
    plan, ids = load_cluster_plan(run.root), submitted_ids(run)
    try:
        tallies, silent = _tally(plan, ids), None
    except StageError as error:
        return Look(entries, str(error))
    events = list(run.read_events())
    for entry in entries:
        if entry["stage"] in tallies and entry["state"] != "done":
            _judge(entry, tallies[entry["stage"]], run, plan, events)
    _name_ancestors(run, entries)
    return Look(entries, silent)


def _tally(plan: ClusterPlan, ids: dict[str, str]) -> dict[str, Tally]:
    stages = {ids[job.name]: job.stage for job in plan.jobs if job.name in ids}
    tallies = {stage: Tally() for stage in stages.values()}
    known = sorted(stages)
    live = [entry for entry in commands.squeue(known) if entry.state not in ENDED]
    for entry in live:
        tallies[stages[entry.id.partition("_")[0]]].live.append(entry)
    queued = {entry.id for entry in live}
    last = {entry.id: entry for entry in commands.sacct(known)}
    for number, attempt in last.items():
        if number not in queued and number.partition("_")[0] in stages:
            tallies[stages[number.partition("_")[0]]].ended.append(attempt)
    return tallies


def _judge(
    entry: dict[str, Any], tally: Tally, run: RunDirectory, plan: ClusterPlan, events: Sequence[dict[str, Any]]
) -> None:
    """Put Slurm's word into a stage's entry."""
    states = Counter(job.state for job in tally.live)
    running = [job for job in tally.live if job.state in ("RUNNING", "COMPLETING", "CONFIGURING")]
    names = {job.name for job in plan.of_stage(entry["stage"])}
    entry["jobs"] = dict(states) | dict(Counter(attempt.state for attempt in tally.ended))
    bad = [attempt for attempt in tally.ended if attempt.state not in ("COMPLETED", "REQUEUED", "PENDING", "RUNNING")]
    if bad and not running:
        entry["state"] = "cancelled" if all(attempt.state == "CANCELLED" for attempt in bad) else "failed"
        said = f"Slurm says {bad[-1].state}"
        entry["error"] = _last_error(names, events) or _last_line(run, bad[-1].id) or said
    elif running:
        entry["state"], entry["nodes"] = "running", ",".join(sorted({job.nodes for job in running if job.nodes}))
        entry.setdefault("progress", run.read_progress(entry["stage"]))
    elif tally.live:
        again = [event for event in events if event.get("job") in names and event["event"] == "attempt_ended"]
        entry["state"] = "held up" if again and again[-1].get("requeued") else "waiting"
        entry["reason"] = again[-1]["reason"] if entry["state"] == "held up" else tally.live[0].reason
    if entry["state"] not in BAD:
        entry.pop("error", None)


def _last_error(jobs: set[str], events: Sequence[dict[str, Any]]) -> str | None:
    said = [event["error"] for event in events if event.get("job") in jobs and event.get("error")]
    return said[-1] if said else None


def _last_line(run: RunDirectory, job: str) -> str | None:
    """What a job's own log ends with: the reason, where it did not come as far as the stage."""
    log = run.root / FOLDER / f"{job}_0_log.out"
    if not log.exists():
        return None
    lines = [line for line in log.read_text(errors="replace").splitlines() if line and not line.startswith("srun: ")]
    return f"{lines[-1]} (log: {log})" if lines else None


def _name_ancestors(run: RunDirectory, entries: Sequence[dict[str, Any]]) -> None:
    """Say of each cancelled stage which failed ancestor it was cancelled for."""
    recipe = load_resolved(run.recipe)
    failed = [entry["stage"] for entry in entries if entry["state"] == "failed"]
    for entry in entries:
        if entry["state"] in ("cancelled", "pending", "waiting"):
            blamed = [name for name in failed if name in recipe.ancestors(entry["stage"])]
            if blamed:
                entry["state"] = "cancelled"
                entry["error"] = f"needs {blamed[0]}, which failed"
