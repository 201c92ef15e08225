"""What a batch script runs: starts the stage's step over all nodes, and decides what follows when the step ends.

submitit unpickles a `StageJob` on the first node and calls it. All else it reads from the run directory. Before a time
limit and at a preemption Slurm signals the step alone, which saves itself and exits with 85. Where it has not done so
when the limit comes, Slurm sends SIGTERM to the batch script too, and SIGKILL half a minute later (KillWait): time
enough to requeue, and the next attempt goes on from what the stage saved last.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from reasonforge.errors import StageError
from reasonforge.processes import start_logged
from recipes.accounting import write_usage
from recipes.interruption import EXIT_INTERRUPTED, SIGNALS
from recipes.recipe import load_resolved
from recipes.run_directory import RunDirectory
from recipes.run_stage import is_done, open_job
from slurm import commands
from slurm.account import account
from slurm.healing import Decision, History, Reason, after_failure, may_go_on
from slurm.plan import Job, load_cluster_plan
from slurm.site import read_secrets

INTERRUPTED = {EXIT_INTERRUPTED, *(128 + number for number in SIGNALS), *(-number for number in SIGNALS)}
"""How a step ends that was told to stop: saved, or, so early that it knew no better, killed by the signal."""
ENDED_WITHIN_S = 900.0
"""How long it waits for Slurm to end it, after a requeue or where the job is ending already."""
SILENT_WITHIN_S = 3600.0
"""How long it waits for a controller or an accounting that does not answer: an upgrade may take a while."""

T = TypeVar("T")


@dataclass
class StageJob:
    """One job, or one task of an array."""

    root: Path
    job: str
    part: int | None = None

    def __call__(self) -> None:
        """Run the step to its end. Raises StageError where the stage failed for good: its job fails, and Slurm cancels
        those that wait for it."""
        Attempt(RunDirectory(self.root), load_cluster_plan(self.root).job(self.job), self.part).run()


@dataclass
class Attempt:
    """The present attempt of a job."""

    run_directory: RunDirectory
    job: Job
    part: int | None
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def run(self) -> None:
        """See StageJob."""
        history = History.read(self.run_directory, self.job.name, self.part)
        nodes = commands.expand_nodes(self.environment.get("SLURM_JOB_NODELIST", ""))
        self._look_back(history)
        bad = history.bad_nodes().intersection(nodes)
        if bad:
            self._requeue(Reason("node_fail", f"it was given {', '.join(sorted(bad))} again"), history, [])
        self._record("attempt_started", nodes=nodes, restart=self._restarts)
        if load_resolved(self.run_directory.recipe).stages[self.job.stage].kind == "report":
            write_usage(self.run_directory.accounting, patiently(lambda: account(self.run_directory)))
        log = self.run_directory.log(self.job.stage, self.part)
        offset = log.stat().st_size if log.exists() else 0
        code = self._step(log, history)
        if code == 0 and self._is_done():
            self._record("attempt_ended", reason="done")
            return
        seconds_left = self._time_left()
        if code in INTERRUPTED:
            limit = seconds_left is not None and seconds_left <= self.job.save_s + 75  # Slurm may be 60 s early
            decision = Decision(Reason("time_limit" if limit else "preempted", "the stage was told to stop"), True)
        else:
            decision = after_failure(code, self._own_account(), log, offset, nodes)
        refusal = may_go_on(decision, history, self.job.retries)
        if refusal is None:
            self._requeue(decision.reason, history, decision.nodes)
        self._record("attempt_ended", reason=decision.reason.cause, exit_code=code, error=refusal)
        raise StageError(f"stage {self.job.stage}: {refusal} (log: {log})")

    def _step(self, log: Path, history: History) -> int:
        """Run the stage over all nodes; its exit code, negative where a signal ended srun."""
        command = [*self.job.step, *([] if self.part is None else ["--part", str(self.part)])]
        added = {**self.job.environment, **read_secrets(self.job.secrets)}
        requeued = False

        def told_to_end(*_: object) -> None:
            nonlocal requeued
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm sends it twice
            requeued = self._requeued_at_the_limit(history)
            if not requeued:
                signal.signal(signal.SIGTERM, told_to_end)

        step = start_logged(command, log, {**self.environment, **added})
        before = signal.signal(signal.SIGTERM, told_to_end)
        code = step.wait()
        signal.signal(signal.SIGTERM, before)
        if requeued:
            self._wait_for_the_end()
        return code

    def _requeued_at_the_limit(self, history: History) -> bool:
        """Requeue where it is the time limit that ends this job, and not a user or a preemption."""
        decision = Decision(Reason("time_limit", "the limit came before the stage had saved itself"), True)
        try:
            if (
                commands.job_state(self._id).reason != "TimeLimit"
                or may_go_on(decision, history, self.job.retries) is not None
            ):
                return False
            commands.requeue(self._id)
        except StageError:  # the controller is away; so is the time to wait for it
            return False
        self._record("attempt_ended", reason="time_limit", detail=decision.reason.detail, requeued=True)
        return True

    def _own_account(self) -> str | None:
        """What the stage said of its error in this attempt; None where it was killed before it could."""
        said = None
        for event in self.run_directory.read_events():
            if event.get("job") == self.job.name and event.get("part") == self.part:
                said = None  # an attempt began
            elif (event.get("stage"), event.get("part"), event["event"]) == (self.job.stage, self.part, "stage_failed"):
                said = str(event["error"])
        return said

    def _is_done(self) -> bool:
        """Whether the stage (or the part) left what it had to: after a node failure srun's exit code is 0 too."""
        run = self.run_directory
        if self.part is None:
            return is_done(open_job(run, self.job.stage))
        return any(
            (event["event"], event.get("stage"), event.get("part")) == ("part_finished", self.job.stage, self.part)
            for event in run.read_events()
        )

    def _time_left(self) -> float | None:
        """Seconds to the time limit. Where the job is ending already (cancelled, its node lost), waits for that."""
        found = patiently(lambda: commands.job_state(self._id))
        if found.state != "RUNNING":
            self._wait_for_the_end()
        return found.seconds_left

    def _look_back(self, history: History) -> None:
        """What became of the attempt before this one, where Slurm ended it without a word to us."""
        if not self._restarts or not history.last_is_open:
            return
        attempts = patiently(lambda: commands.sacct([self._id]))
        past = [entry.state for entry in attempts if entry.state in ("NODE_FAIL", "PREEMPTED")]
        cause = {"NODE_FAIL": "node_fail", "PREEMPTED": "preempted"}.get(past[-1] if past else "", "killed")
        nodes = history.open_nodes if cause == "node_fail" else []
        if len(nodes) > 1:  # which of them it was, only their states tell
            states = commands.node_states(nodes)
            nodes = [node for node in nodes if states.get(node, "").startswith("down")]
        decision = Decision(Reason(cause, "Slurm requeued it"), True)
        refusal = may_go_on(decision, history, self.job.retries)
        history.close(cause, nodes)
        self._record("attempt_ended", reason=cause, requeued=refusal is None, bad_nodes=nodes, error=refusal)
        if refusal is not None:
            raise StageError(f"stage {self.job.stage}: {refusal}")

    def _requeue(self, reason: Reason, history: History, blamed: list[str]) -> None:
        """Back into the queue under the same id, away from bad nodes; does not return, for Slurm ends this job."""
        self._record("attempt_ended", reason=reason.cause, detail=reason.detail, requeued=True, bad_nodes=blamed)
        patiently(lambda: commands.requeue(self._id))
        excluded = history.bad_nodes(blamed)
        if excluded:
            commands.exclude_nodes(self._id, sorted(excluded))
        self._wait_for_the_end()

    def _wait_for_the_end(self) -> None:
        """Stay until Slurm ends this job: whoever leaves before is taken for failed."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(ENDED_WITHIN_S)
        raise StageError(f"job {self._id}: Slurm did not end it")

    def _record(self, event: str, **details: object) -> None:
        if self.part is not None:
            details["part"] = self.part
        self.run_directory.record(event, None, job=self.job.name, id=self._id, **details)

    @property
    def _id(self) -> str:
        array = self.environment.get("SLURM_ARRAY_JOB_ID")
        return f"{array}_{self.environment['SLURM_ARRAY_TASK_ID']}" if array else self.environment["SLURM_JOB_ID"]

    @property
    def _restarts(self) -> int:
        return int(self.environment.get("SLURM_RESTART_COUNT", "0"))


def patiently(ask: Callable[[], T]) -> T:
    """Ask Slurm until somebody answers. Raises StageError where it refuses, and after SILENT_WITHIN_S."""
    deadline = time.monotonic() + SILENT_WITHIN_S
    while True:
        try:
            return ask()
        except commands.UnansweredError:
            if time.monotonic() > deadline:
                raise
            time.sleep(5)
