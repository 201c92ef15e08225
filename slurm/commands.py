"""Slurm's commands, asked and read: the one place that knows their options and formats (Slurm 20.11 to 25).

`submit`, `watch`, `cancel` and the stage's own job use it. Fields are separated by `|`; job ids are texts, `123` or
`123_7` for a task of an array.
"""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from reasonforge.errors import RequestError, StageError
from reasonforge.processes import finish

PATIENCE_S = 30.0
"""Seconds for a command: a controller that restarts, or has much to do, answers late."""

_NOBODY = re.compile("Unable to contact|Socket timed out|Connection (?:refused|timed out|reset)|no answer in")
"""What Slurm's commands, and `finish`, say where the controller or the accounting is away."""


class UnansweredError(StageError):
    """The controller or the accounting is away; it may be back in a minute."""


@dataclass(frozen=True)
class Queued:
    """One job or task of an array in the queue (squeue)."""

    id: str
    state: str
    """PENDING, RUNNING, COMPLETING, ..."""
    reason: str
    nodes: str


@dataclass(frozen=True)
class Accounted:
    """One attempt of a job or task of an array, as the accounting keeps it (sacct -D)."""

    id: str
    state: str
    """COMPLETED, FAILED, TIMEOUT, CANCELLED, NODE_FAIL, PREEMPTED, OUT_OF_MEMORY, REQUEUED, ..."""
    exit_code: str
    start: str
    elapsed_s: int
    nodes: str
    gpus: int
    cpus: int


def squeue(ids: Sequence[str]) -> list[Queued]:
    """What is in the queue of these jobs, each task of an array for itself.

    Raises StageError where the controller does not answer.
    """
    if not ids:
        return []
    command = ["squeue", "--noheader", "--array", "--states=all", "--jobs", ",".join(ids), "--format=%i|%T|%r|%N"]
    done = finish(command, PATIENCE_S)
    if done.returncode and "Invalid job id" not in done.stderr:
        raise _silent(command, done)
    found = []
    for line in done.stdout.splitlines():
        number, state, reason, nodes = line.split("|")
        found.append(Queued(number, state, reason, nodes))
    return found


@dataclass(frozen=True)
class JobState:
    """A running or ending job."""

    state: str
    reason: str
    """TimeLimit where that is what ends it; None, Priority, Dependency, ..."""
    seconds_left: float | None
    """To its limit; None where it has none."""


def job_state(job: str) -> JobState:
    """What has become of a job. Raises StageError where the controller does not answer."""
    command = ["squeue", "--noheader", "--states=all", "--jobs", job, "--format=%T|%r|%L"]
    done = finish(command, PATIENCE_S)
    if done.returncode:
        raise _silent(command, done)
    state, reason, left = done.stdout.strip().split("|")  # by the limit: a preemption moves the job's end
    return JobState(state, reason, seconds_of(left))


def seconds_of(left: str) -> float | None:
    """A duration of Slurm's, `1-02:03:04` or `03:04`, in seconds; None for UNLIMITED and the like.

    INVALID is what Slurm prints of a negative one (`secs2time_str`): a job that OverTimeLimit lets go on has 0 s left.
    """
    if left == "INVALID":
        return 0.0
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", left)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def sacct(ids: Sequence[str]) -> list[Accounted]:
    """Every attempt of these jobs, oldest first. Raises StageError where the accounting does not answer."""
    if not ids:
        return []
    fields = "JobID,State,ExitCode,Start,ElapsedRaw,NodeList,AllocTRES"
    command = ["sacct", "--duplicates", "--allocations", "--noheader", "--parsable2"]
    command += ["--jobs", ",".join(ids), f"--format={fields}"]
    done = finish(command, PATIENCE_S)
    if done.returncode:
        raise _silent(command, done)
    return [_accounted(line.split("|")) for line in done.stdout.splitlines()]


def _accounted(fields: Sequence[str]) -> Accounted:
    number, state, exit_code, start, elapsed, nodes, tres = fields
    state, _, _ = state.partition(" ")  # "CANCELLED by 1000"
    return Accounted(
        number, state, exit_code, start, int(elapsed or 0), nodes, _tres(tres, "gres/gpu"), _tres(tres, "cpu")
    )


def _tres(tres: str, name: str) -> int:
    """How much of a trackable resource: `billing=64,cpu=64,gres/gpu:h100=8,gres/gpu=8,mem=100G,node=1`."""
    found = re.search(rf"(?:^|,){re.escape(name)}=(\d+)", tres)
    return int(found[1]) if found else 0


def scancel(ids: Sequence[str]) -> None:
    """Cancel jobs; those that ended already are let be. Raises StageError where the controller does not answer."""
    if ids:
        command = ["scancel", *ids]
        done = finish(command, PATIENCE_S)
        if done.returncode and "Invalid job id" not in done.stderr and "already completing" not in done.stderr:
            raise _silent(command, done)


def release(ids: Sequence[str]) -> None:
    """Let held jobs start. Raises StageError where Slurm refuses."""
    if ids:
        command = ["scontrol", "release", ",".join(ids)]
        done = finish(command, PATIENCE_S)
        if done.returncode:
            raise _silent(command, done)


def jobs_with_comment(comment: str) -> list[str]:
    """The ids of our own jobs in the queue that were submitted with this comment."""
    command = ["squeue", "--noheader", "--me", "--format=%A|%k"]
    done = finish(command, PATIENCE_S)
    if done.returncode:
        raise _silent(command, done)
    fields = (line.partition("|") for line in done.stdout.splitlines())
    return sorted({number for number, _, said in fields if said == comment})


def requeue(job: str) -> None:
    """Put a running job back into the queue under its own id. Raises StageError where Slurm refuses."""
    command = ["scontrol", "requeue", job]
    done = finish(command, PATIENCE_S)
    if done.returncode and "Job is pending execution" not in done.stderr:
        raise _silent(command, done)


def exclude_nodes(job: str, nodes: Sequence[str]) -> bool:
    """Keep a pending job away from nodes; whether Slurm did so."""
    command = ["scontrol", "update", f"JobId={job}", f"ExcNodeList={','.join(sorted(nodes))}"]
    return finish(command, PATIENCE_S).returncode == 0


def node_states(nodes: Sequence[str]) -> dict[str, str]:
    """The state of each node: idle, mixed, allocated, down, drained, ...; an asterisk says that it does not respond."""
    if not nodes:
        return {}
    done = finish(["sinfo", "--noheader", "--Node", "--nodes", ",".join(nodes), "--format=%N|%T"], PATIENCE_S)
    return dict(line.split("|") for line in done.stdout.splitlines()) if done.returncode == 0 else {}


def batch_script(job: str) -> str:
    """The script that Slurm has of a job, byte for byte. Raises StageError where it has none."""
    command = ["scontrol", "write", "batch_script", job, "-"]
    done = finish(command, PATIENCE_S)
    if done.returncode:
        raise _silent(command, done)
    return done.stdout


def expand_nodes(nodes: str) -> list[str]:
    """`gpu[01-03,7],login1` as a list of names.

    Raises RequestError on what is no list of nodes.
    """
    found: list[str] = []
    for prefix, ranges, plain in re.findall(r"([^,\[\]]*)\[([^\]]*)\]|([^,\[\]]+)", nodes):
        if plain:
            found.append(plain)
        for part in ranges.split(",") if ranges else []:
            first, _, last = part.partition("-")
            if not first.isdigit() or not (last or first).isdigit():
                raise RequestError(nodes, "no list of nodes", "as squeue prints it: gpu[01-03],login1")
            found += [f"{prefix}{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]
    return found


def _silent(command: Sequence[str], done: "subprocess.CompletedProcess[str]") -> StageError:
    said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
    return (UnansweredError if _NOBODY.search(said) else StageError)(f"{command[0]}: {said[:300]}")
