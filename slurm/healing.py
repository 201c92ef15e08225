"""Whether a job goes on after an interruption or a failure: by its cause, and by how often that has happened already.

It reads the run's events and the attempt's log, and decides; `stage_job` acts.
"""

import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from reasonforge.errors import RequestError
from recipes.run_directory import RunDirectory
from slurm.explain.engine import Log, explain
from slurm.explain.table import read_table
from slurm.site import Retries

FAILURES_OF_A_BAD_NODE = 2
"""A node that failed this often in a run is left out of all that follows."""

NODE_CAUSES = ("node_fail", "gpu_hardware", "nccl_network", "nccl_timeout", "filesystem")
"""Causes, as `explain` names them, that lie with machines and not with the work: it goes on, elsewhere if need be."""

SURE = 0.9
"""The confidence of a diagnosis that rests on a line which says the cause in so many words."""

GUESS = 0.4
"""The confidence below which a diagnosis is a guess from single words: enough to tell a user, not to act upon."""

UNKNOWN_CAUSES = ("unknown", "segfault")
"""Causes after which one more attempt may tell."""


@dataclass(frozen=True)
class Reason:
    """Why an attempt ended."""

    cause: str
    """One of the causes of `explain`, or "killed"."""
    detail: str


@dataclass(frozen=True)
class Decision:
    """What an ended attempt calls for."""

    reason: Reason
    retry: bool
    nodes: list[str] = field(default_factory=list)
    """Nodes that are to blame."""

    @property
    def budget(self) -> str:
        """The field of `Retries` that counts it."""
        cause = self.reason.cause
        return cause if cause in ("time_limit", "preempted") else "node_fail" if cause in NODE_CAUSES else "killed"


@dataclass
class History:
    """What the events of a run say of one job (or one part), and of the nodes."""

    reasons: Counter[str] = field(default_factory=Counter)
    """How often this job went on, by budget."""
    node_failures: Counter[str] = field(default_factory=Counter)
    """In the whole run."""
    last_is_open: bool = False
    """Whether its last attempt has not said how it ended."""
    open_nodes: list[str] = field(default_factory=list)
    """Where that attempt ran."""

    @classmethod
    def read(cls, run: RunDirectory, job: str, part: int | None) -> "History":
        """From the run's events."""
        history = cls()
        for event in run.read_events():
            history.node_failures.update(event.get("bad_nodes", []))
            anew = event["event"] == "job_submitted"  # of an array as a whole
            if event.get("job") == job and (anew or event.get("part") == part):
                history._add(event)
        return history

    def _add(self, event: dict[str, Any]) -> None:
        if event["event"] == "job_submitted":  # submitted anew by a user: the budgets start afresh
            self.reasons.clear()
            self.last_is_open = False
        elif event["event"] == "attempt_started":
            self.last_is_open, self.open_nodes = True, event["nodes"]
        elif event["event"] == "attempt_ended":
            self.last_is_open = False
            if event.get("requeued"):
                self.reasons[Decision(Reason(event["reason"], ""), True).budget] += 1

    def close(self, cause: str, nodes: Sequence[str]) -> None:
        """Take note of how the open attempt ended."""
        self.last_is_open = False
        self.reasons[Decision(Reason(cause, ""), True).budget] += 1
        self.node_failures.update(nodes)

    def bad_nodes(self, more: Sequence[str] = ()) -> set[str]:
        """Nodes to stay away from; `more` have failed just now."""
        failures = self.node_failures + Counter(more)
        return {node for node, count in failures.items() if count >= FAILURES_OF_A_BAD_NODE}


def after_failure(code: int, said: str | None, log: Path, offset: int, nodes: Sequence[str]) -> Decision:
    """What a step's failure calls for.

    Args:
        code: srun's exit code; negative: the signal that ended srun; above 128: the one that ended a task.
        said: the stage's own account of its error, where it could still give one.
        log: the stage's log; this attempt's part begins at `offset`.
        nodes: the job's nodes.
    """
    if code == RequestError.exit_code:  # the stage itself says that it was asked for something wrong
        return Decision(Reason("config_error", said or f"exit code {code}"), False)
    diagnosis = explain(read_table(), [Log(log.name, lambda: _open_at(log, offset))])
    cause = diagnosis.cause if diagnosis.confidence >= GUESS else "unknown"
    reason = Reason(cause, said or (diagnosis.lines[0][:300] if diagnosis.lines else f"exit code {code}"))
    if cause in NODE_CAUSES:
        blamed = diagnosis.where.node if diagnosis.where else None
        named = [blamed] if blamed in nodes else list(nodes) if len(nodes) == 1 else []
        return Decision(reason, True, [node for node in named if node is not None])
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL) and diagnosis.confidence < SURE:
        return Decision(Reason("killed", "SIGKILL by an unknown hand"), True)
    return Decision(reason, cause in UNKNOWN_CAUSES and said is None)


def _open_at(log: Path, offset: int) -> BinaryIO:
    handle = open(log, "rb")  # noqa: SIM115 - its reader closes it
    handle.seek(offset)
    return handle


def may_go_on(decision: Decision, history: History, retries: Retries) -> str | None:
    """None where the job goes on; else why it does not."""
    said = f"{decision.reason.cause}: {decision.reason.detail}"
    if not decision.retry:
        return said
    limit: int = getattr(retries, decision.budget)
    if history.reasons[decision.budget] >= limit:
        return f"{said}; it went on {limit} times already (retries.{decision.budget})"
    return None
