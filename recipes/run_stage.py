"""`python -m recipes.run_stage RUN_DIR STAGE`: does one stage, the same on a laptop, in a container and under srun.

It reads the resolved recipe and the input artifacts from the run directory, works in `work/STAGE/KEY` and publishes
to `stages/STAGE`. It may be killed at any instant and run again. A parallel stage is started once for each GPU, by
srun or torchrun, and the first of its processes publishes. Exit codes: 0 done, 1 failed, 2 bad request,
85 told to stop (SIGUSR2, SIGTERM), saved, and to be run again.
"""

import argparse
import datetime
import fcntl
import os
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from reasonforge.artifacts import (
    RECEIPT,
    Artifact,
    Cost,
    InputRecord,
    Receipt,
    content_digest,
    hash_files,
    load,
    seal,
    stage_key,
)
from reasonforge.config import key_config
from reasonforge.disk import disk_error
from reasonforge.errors import ReasonforgeError, RequestError
from reasonforge.files import fsync_path, sha256_file, write_atomic
from reasonforge.processes import die_with_parent
from recipes.environment import describe_environment
from recipes.interruption import EXIT_INTERRUPTED, Interrupted, catch_signals, requested
from recipes.ranks import ALONE, Rank, find_rank
from recipes.recipe import Recipe, load_resolved
from recipes.run_directory import RunDirectory
from recipes.stage import Stage, StageContext

# Idle OpenMP threads that spin cost a shared machine more than they save; libgomp reads these when torch loads.
_QUIET_THREADS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "TOKENIZERS_PARALLELISM": "false"}

LOCK_PATIENCE_S = 2.0


@dataclass(frozen=True)
class StageJob:
    """A stage of a run with its inputs opened: all that decides whether its work is already done."""

    run: RunDirectory
    recipe: Recipe
    name: str
    inputs: dict[str, Artifact]

    @property
    def stage(self) -> Stage:
        """The stage's configuration."""
        return self.recipe.stages[self.name]

    @property
    def config(self) -> dict[str, Any]:
        """What decides the output: the options with the seed, without the names of the inputs."""
        options = key_config(self.stage)
        options.pop("inputs", None)
        files = {str(path): fingerprint(path) for path in self.stage.external_files}
        return {"seed": self.recipe.seed, **options, **({"external_files": files} if files else {})}

    @property
    def records(self) -> dict[str, InputRecord]:
        """The inputs as the receipt lists them."""
        return {
            name: InputRecord(stage=found.receipt.stage, kind=found.receipt.kind, digest=found.digest)
            for name, found in self.inputs.items()
        }

    @property
    def key(self) -> str:
        """The stage key."""
        return stage_key(self.stage.type, self.stage.version, self.config, self.records)

    @property
    def workspace(self) -> Path:
        """Where this very piece of work is done; another configuration works in another place."""
        return self.run.work(self.name) / self.key[:16]


def fingerprint(path: Path) -> str:
    """What tells whether a file from outside has changed: its SHA-256, or size and time where reading takes too long.

    Raises RequestError where there is no such file.
    """
    if not path.is_file():
        raise RequestError(str(path), "no such file", "the recipe names it")
    found = path.stat()
    return sha256_file(path) if found.st_size <= 2**28 else f"{found.st_size} bytes of {found.st_mtime_ns} ns"


def open_job(run: RunDirectory, name: str, recipe: Recipe | None = None) -> StageJob:
    """Open a stage of a run, by its own recipe or by a newer one.

    Raises RequestError where an input artifact is missing or damaged.
    """
    recipe = recipe or load_resolved(run.recipe)
    if name not in recipe.stages:
        raise RequestError(str(run.recipe), f"no stage {name!r}", f"choose one of: {', '.join(recipe.stages)}")
    inputs: dict[str, Artifact] = {}
    for ref in recipe.stages[name].input_refs():
        if not (run.stage(ref.stage) / RECEIPT).exists():
            raise RequestError(
                f"stage {name}", f"its input {ref.name} has not been made", f"run stage {ref.stage} first"
            )
        inputs[ref.name] = load(run.stage(ref.stage))
    return StageJob(run, recipe, name, inputs)


def is_done(job: StageJob) -> bool:
    """Whether the published artifact is the one this job would make. Raises RequestError where it was damaged."""
    target = job.run.stage(job.name)
    return (target / RECEIPT).exists() and load(target).receipt.key == job.key


def run_stage(run: RunDirectory, name: str, *, force: bool = False, rank: Rank = ALONE) -> Artifact:
    """Do a stage unless it is done, and publish its artifact.

    Args:
        force: do it again from the start, whatever is there; the old artifact stays until the new one replaces it.
        rank: this process among those of a parallel stage, the first of them.
    """
    job = open_job(run, name)
    with _locked(run.stage_lock(name), name):
        if force:
            shutil.rmtree(job.workspace, ignore_errors=True)
        elif is_done(job):
            shutil.rmtree(run.work(name), ignore_errors=True)
            return load(run.stage(name))
        sealed = job.workspace / "out"
        artifact = load(sealed) if (sealed / RECEIPT).exists() else _work(job, rank)
        return _publish(job, artifact)


def run_part(run: RunDirectory, name: str, part: int) -> None:
    """Do one part of a stage that an array of jobs shares, unless the stage is done; `run_stage` finishes it.

    Raises RequestError where the recipe does not divide the stage into as many parts.
    """
    job = open_job(run, name)
    parts = job.stage.resources.array
    if not 0 <= part < parts:
        raise RequestError(f"stage {name}", f"no part {part}", f"its resources.array makes parts 0 to {parts - 1}")
    with _locked(run.stage_lock(name), name, shared=True), _locked(run.stage_lock(name, part), f"{name}, part {part}"):
        if not is_done(job):
            (job.workspace / "scratch").mkdir(parents=True, exist_ok=True)
            run.progress(name, part).parent.mkdir(exist_ok=True)
            run.record("part_started", name, part=part, pid=os.getpid())
            job.stage.run_part(_context(job, part), part)
            run.record("part_finished", name, part=part)


def assist(run: RunDirectory, name: str, rank: Rank, *, force: bool = False) -> None:
    """Do a parallel stage's work as one of its processes that publish nothing, unless the first one has no work left:
    it alone holds the lock, clears the output, and seals, publishes and records."""
    job = open_job(run, name)
    sealed = (job.workspace / "out" / RECEIPT).exists()  # looked for before the place to which it may be moved now
    if force or not (sealed or is_done(job)):
        job.stage.run(_context(job, rank=rank))


def rank_of(run: RunDirectory, name: str) -> Rank:
    """Which process of a stage this is. One that is not parallel is alone, whatever its environment says."""
    stage = load_resolved(run.recipe).stages.get(name)
    return find_rank() if stage is not None and stage.parallel else ALONE


def _context(job: StageJob, part: int | None = None, rank: Rank = ALONE) -> StageContext:
    return StageContext(
        stage=job.name,
        seed=job.recipe.seed,
        inputs=job.inputs,
        out=job.workspace / "out",
        scratch=job.workspace / "scratch",
        progress_file=job.run.progress(job.name, part),
        accounting=job.run.accounting,
        rank=rank,
    )


def _work(job: StageJob, rank: Rank) -> Artifact:
    """Run the stage in its workspace and seal what it made."""
    workspace, started, clock = job.workspace, time.time(), time.monotonic()
    attempt = _count_attempt(workspace)
    sys.stderr.write(f"reasonforge: stage {job.name}, attempt {attempt}\n")
    out = workspace / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (workspace / "scratch").mkdir(exist_ok=True)
    job.run.progress(job.name).parent.mkdir(exist_ok=True)
    job.run.record("stage_started", job.name, attempt=attempt, key=job.key, pid=os.getpid())
    try:
        counts = job.stage.run(_context(job, rank=rank))
    except Exception as error:
        told = disk_error(error, out)
        if told is None:
            raise
        shutil.rmtree(out, ignore_errors=True)  # it begins anew at the next attempt, and this one needs room to say so
        raise told from error
    files = hash_files(out)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cost = Cost(
        started_at=datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds"),
        wall_s=round(time.monotonic() - clock, 3),
        cpu_s=round(sum(usage.ru_utime + usage.ru_stime for usage in used), 3),
        peak_rss_bytes=used[0].ru_maxrss * 1024,
        attempt=attempt,
    )
    receipt = Receipt(
        stage=job.name,
        stage_type=job.stage.type,
        kind=job.stage.kind,
        key=job.key,
        config=job.config,
        inputs=job.records,
        files=files,
        digest=content_digest(files),
        counts=counts,
        environment=describe_environment(),
        cost=cost,
        lineage=_lineage(job.inputs),
    )
    return seal(out, receipt)


def _publish(job: StageJob, artifact: Artifact) -> Artifact:
    """Move a sealed directory to its place by rename, and clear the work behind it."""
    target = job.run.stage(job.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        replaced = job.workspace / f"replaced.{os.getpid()}"
        target.rename(replaced)
    artifact.path.rename(target)
    fsync_path(target.parent)
    if job.stage.kind == "report":
        _link(job.run.report_link, target)
    shutil.rmtree(job.run.work(job.name), ignore_errors=True)
    published = load(target)
    job.run.record(
        "stage_finished",
        job.name,
        key=job.key,
        digest=published.digest,
        wall_s=published.receipt.cost.wall_s,
        cpu_s=published.receipt.cost.cpu_s,
    )
    return published


def _link(link: Path, target: Path) -> None:
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.relative_to(link.parent))
    os.replace(temporary, link)


def _lineage(inputs: dict[str, Artifact]) -> dict[str, dict[str, Any]]:
    """Every ancestor once: the inputs' own lineages, then the inputs."""
    ancestors: dict[str, dict[str, Any]] = {}
    for artifact in inputs.values():
        ancestors |= artifact.receipt.lineage
    for artifact in inputs.values():
        receipt = artifact.receipt
        ancestors[receipt.stage] = {
            "type": receipt.stage_type,
            "kind": receipt.kind,
            "key": receipt.key,
            "digest": receipt.digest,
            "inputs": {name: record.model_dump(mode="json") for name, record in receipt.inputs.items()},
            "cost": receipt.cost.model_dump(mode="json"),
        }
    return ancestors


def _count_attempt(workspace: Path) -> int:
    counter = workspace / "attempts"
    attempt = int(counter.read_text()) + 1 if counter.exists() else 1
    write_atomic(counter, str(attempt))
    return attempt


@contextmanager
def _locked(path: Path, name: str, *, shared: bool = False) -> Iterator[None]:
    """Hold a stage's lock; the kernel drops it when the process dies, however it dies.

    It is asked for during LOCK_PATIENCE_S: a killed process takes a moment to die, and `status` looks for an instant.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_PATIENCE_S
    with open(path, "w") as handle:
        while not try_lock(handle, shared=shared):
            if time.monotonic() > deadline:
                raise RequestError(f"stage {name}", "another process is doing it", "wait for that one to end")
            time.sleep(0.05)
        yield


def try_lock(handle: IO[Any], *, shared: bool = False) -> bool:
    """Take the lock of an open file for this process, if nobody has it (`shared`: nobody has it alone)."""
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    """The command line; the error's one line goes to the log and, for the launcher, into the events."""
    parser = argparse.ArgumentParser(prog="python -m recipes.run_stage", description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("stage")
    parser.add_argument("--force", action="store_true", help="do it again, even if it is done")
    parser.add_argument("--part", type=int, metavar="N", help="do part N of a stage that an array of jobs shares")
    parser.add_argument("--with-parent", type=int, metavar="PID", help="end when this process, the parent, dies")
    options = parser.parse_args(arguments)
    catch_signals()
    if options.with_parent is not None:
        die_with_parent(options.with_parent)
    for name, value in _QUIET_THREADS.items():
        os.environ.setdefault(name, value)
    run, rank = RunDirectory(options.run_dir), ALONE
    try:
        rank = rank_of(run, options.stage)
        if options.part is not None:
            run_part(run, options.stage, options.part)
        elif rank.first:
            run_stage(run, options.stage, force=options.force, rank=rank)
        else:
            assist(run, options.stage, rank, force=options.force)
    except Interrupted:
        return _interrupted(run, options, rank)
    except Exception as error:  # noqa: BLE001 - the boundary of the process: recorded, logged whole, exit 1
        if requested():  # a worker that took the signal itself, or another rank, failed because of it
            return _interrupted(run, options, rank)
        return _failed(run, options, rank, error)
    return 0


def _interrupted(run: RunDirectory, options: argparse.Namespace, rank: Rank) -> int:
    if rank.first:
        _log("told to stop: what is done is saved, and the same command goes on from here")
        _record(run, "stage_interrupted", options, rank)
    return EXIT_INTERRUPTED


def _failed(run: RunDirectory, options: argparse.Namespace, rank: Rank, error: Exception) -> int:
    """Log an error, and record it. Of the ranks that do not publish only those record one who know what it was:
    when one dies, all others meet a lost connection."""
    known = error if isinstance(error, ReasonforgeError) else disk_error(error, run.root)
    code = known.exit_code if known is not None else 1
    if known is not None:
        _log(f"error: {known}")
    else:
        _log("".join(traceback.format_exception(error)).rstrip())
    said = str(known) if known is not None else f"{type(error).__name__}: {error}".splitlines()[0]
    if run.recipe.exists() if known is not None else rank.first:
        _record(run, "stage_failed", options, rank, exit_code=code, error=said)
    return code


def _log(text: str) -> None:
    """Say something in the log, if its disk has room for it; Python would exit with 120 for what cannot be flushed."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process


def _record(run: RunDirectory, event: str, options: argparse.Namespace, rank: Rank, **details: Any) -> None:
    """Record how a stage ended, if the run's disk has room for it: the exit code says it too."""
    with suppress(OSError):
        run.record(event, options.stage, **details, **_which(options, rank))


def _which(options: argparse.Namespace, rank: Rank) -> dict[str, int]:
    """The part or the rank that an event is about, where the stage has several."""
    return {
        **({} if options.part is None else {"part": options.part}),
        **({"rank": rank.number} if rank.size > 1 else {}),
    }


if __name__ == "__main__":
    sys.exit(main())
