"""Where a conversion works and how its result appears: whole, by rename, with a receipt, or not at all.

`importing`, `exporting` and `merging` work in a hidden directory beside the destination. Journals in it name the writes
that are on the disk, so the same command goes on after a kill; another conversion starts afresh. Where several tasks do
it together, each writes files of its own; the first waits for the others, then finishes and publishes.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from checkpoints_conversion.copying import Write, carry_out, name_of
from checkpoints_conversion.tasks import ALONE, Task, wait_until
from checkpoints_conversion.workspace import Workspace
from reasonforge import __version__
from reasonforge.display import data_size
from reasonforge.errors import RequestError
from reasonforge.files import canonical_json, fsync_path, read_json, sha256_file, sha256_text, write_json
from reasonforge.progress import Progress

RECEIPT = "conversion.json"
"""In every directory that a conversion made: from what, how, each file's size, and the SHA-256 of the small ones."""


@dataclass(frozen=True)
class Job:
    """A conversion, planned to the byte."""

    destination: Path
    identity: Mapping[str, Any]
    """What the result depends on, as JSON values: the sources' files with size and time, and the options."""
    sizes: Mapping[str, int]
    """Bytes of each file that `writes` go into, by its name in the destination."""
    writes: Sequence[Write]
    finish: Callable[[Path], None]
    """Writes the small files into the directory: headers, metadata, configuration, tokenizer."""


@dataclass(frozen=True)
class Outcome:
    """What a conversion did."""

    destination: Path
    bytes: int
    already_done: bool


def publish(job: Job, workers: int, progress: Callable[[int], Progress], task: Task = ALONE) -> Outcome:
    """Carry out a conversion, or go on with it, and publish it. One that is already there is left as it is.

    The result is the same, byte for byte, for every number of workers and tasks.

    Args:
        progress: makes the counter of this task's bytes, given their number.
        task: which part this process does; each task plans all of it, and returns when it is published.
    Raises RequestError where the destination is something else, where another process is at it, or where the disk has
    too little room; StageError where another task does not do its part.
    """
    outcome = Outcome(job.destination, sum(job.sizes.values()), False)
    key = sha256_text(canonical_json(job.identity))
    plan = [key, __version__, dict(job.sizes), [name_of(write) for write in job.writes]]
    workspace = Workspace(job.destination, sha256_text(canonical_json(plan)))
    if _is_done(job, key):
        if task.leads:
            workspace.clear()
        return replace(outcome, already_done=True)
    if task.leads:
        _lead(job, key, workspace, task, lambda: _write_own(job, workspace, task, workers, progress))
    else:
        _follow(job, key, workspace, task, lambda: _write_own(job, workspace, task, workers, progress))
    return outcome


def _lead(job: Job, key: str, workspace: Workspace, task: Task, write: Callable[[], None]) -> None:
    """The first task, or the only one: prepare, write, wait for the others, finish, publish."""
    job.destination.parent.mkdir(parents=True, exist_ok=True)
    with workspace.held():
        if not _is_done(job, key):
            workspace.prepare()
            _check_room(job, workspace.tree)
            _allocate(job, workspace.tree)
            workspace.open()
            write()
            wait_until(
                lambda: not workspace.missing(task.tasks),
                workspace.activity,
                lambda: _told(job, workspace.missing(task.tasks), task.tasks, "written its part"),
            )
            _clear_leftovers(workspace.tree)
            job.finish(workspace.tree)
            _seal(job, key, workspace.tree)
            workspace.tree.rename(job.destination)
            fsync_path(job.destination.parent)
    workspace.clear()


def _follow(job: Job, key: str, workspace: Workspace, task: Task, write: Callable[[], None]) -> None:
    """Another task: wait until it can begin, write, and wait until all is published."""

    def published() -> bool:
        return _is_done(job, key)

    wait_until(
        lambda: workspace.ready or published(),
        workspace.activity,
        lambda: _told(job, [0], task.tasks, "begun with the same files and options"),
    )
    try:
        if not workspace.marked(task) and not published():
            write()
    except FileNotFoundError:  # the workspace is gone: others, of another number, have published
        if not published():
            raise
    wait_until(
        published,
        workspace.activity,
        lambda: _told(job, workspace.missing(task.tasks) or [0], task.tasks, "finished"),
    )


def _told(job: Job, missing: Sequence[int], tasks: int, what: str) -> str:
    names = ", ".join(map(str, missing[:10])) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
    return f"{job.destination}: task {names} of {tasks} has not {what}"


def _write_own(job: Job, workspace: Workspace, task: Task, workers: int, progress: Callable[[int], Progress]) -> None:
    """Do this task's writes that are not done yet, and mark that they are."""
    own = task.own(job.sizes)
    writes = [write for write in job.writes if write.file in own]
    with workspace.journal(task) as journal, progress(sum(write.bytes for write in writes)) as counted:
        carry_out(writes, workspace.tree, workspace.done(), journal.add, workers, counted)
    workspace.mark(task)


def _is_done(job: Job, key: str) -> bool:
    """Whether the destination is what this job would make. Raises RequestError where it is something else."""
    if not job.destination.exists():
        return False
    receipt = job.destination / RECEIPT
    if receipt.is_file():
        found = read_json(receipt)
        if isinstance(found, dict) and found.get("key") == key:
            return True
    elif job.destination.is_dir() and not any(job.destination.iterdir()):
        return False
    raise RequestError(str(job.destination), "is already there and is not this conversion", "name another, or move it")


def _check_room(job: Job, tree: Path) -> None:
    """Raise RequestError where the disk cannot hold the result, before a byte of it is written."""
    present = sum((tree / name).stat().st_blocks * 512 for name in job.sizes if (tree / name).exists())
    needed = max(sum(job.sizes.values()) - present, 0) + (16 << 20)
    found = os.statvfs(tree)
    free = found.f_bavail * found.f_frsize
    if needed > free:
        raise RequestError(
            str(job.destination),
            f"needs {data_size(needed)}, but its file system has {data_size(free)} free",
            "make room or choose another place",
        )


def _allocate(job: Job, tree: Path) -> None:
    for name, size in job.sizes.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as handle:
            handle.truncate(size)


def _clear_leftovers(tree: Path) -> None:
    """Delete what a kill between writing and renaming a small file left behind, and the receipt of that attempt."""
    for path in [*tree.rglob(".*.tmp"), tree / RECEIPT]:
        path.unlink(missing_ok=True)


def _seal(job: Job, key: str, tree: Path) -> None:
    """Flush everything, then write the receipt."""
    for path in sorted(tree.rglob("*")):
        fsync_path(path)
    files = {path.relative_to(tree).as_posix(): path for path in sorted(tree.rglob("*")) if path.is_file()}
    receipt = {
        "format": 1,
        "key": key,
        "made_by": f"reasonforge {__version__}",
        **job.identity,
        "files": {name: path.stat().st_size for name, path in files.items()},
        "sha256": {name: sha256_file(path) for name, path in files.items() if name not in job.sizes},
    }
    write_json(tree / RECEIPT, receipt)


def fingerprint(paths: Sequence[Path], root: Path) -> dict[str, list[int]]:
    """Size and time of change of files, by their name below `root`: what tells whether a source has changed."""
    return {os.path.relpath(path, root): [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(set(paths))}
