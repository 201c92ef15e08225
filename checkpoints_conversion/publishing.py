"""Where a conversion works and how its result appears: whole, by rename, with a receipt, or not at all.

`importing`, `exporting` and `merging` work in a hidden directory beside the destination. Its journal names the writes
that are on the disk, so the same command goes on after a kill; another conversion starts afresh.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints_conversion.copying import Write, carry_out
from reasonforge import __version__
from reasonforge.errors import RequestError
from reasonforge.files import canonical_json, fsync_path, read_json, sha256_text, write_json
from reasonforge.progress import Progress

RECEIPT = "conversion.json"
"""In every directory that a conversion made: from what, how, and the size of each file."""


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


def publish(job: Job, workers: int, progress: Callable[[int], Progress]) -> Outcome:
    """Carry out a conversion, or go on with it, and publish it. One that is already there is left as it is.

    Raises RequestError where the destination is something else, where another process is at it, or where the disk has
    too little room.
    """
    total = sum(job.sizes.values())
    key = sha256_text(canonical_json(job.identity))
    if _is_done(job, key):
        shutil.rmtree(_workspace(job.destination), ignore_errors=True)
        return Outcome(job.destination, total, True)
    job.destination.parent.mkdir(parents=True, exist_ok=True)
    with _workplace(job.destination, key) as workspace:
        tree, journal = workspace / "tree", workspace / "done"
        _check_room(job, tree)
        _allocate(job, tree)
        done = frozenset(journal.read_text().split("\n")) if journal.exists() else frozenset()
        with progress(total) as counted, open(journal, "a", encoding="utf-8") as handle:

            def finished(names: Sequence[str]) -> None:
                handle.write("".join(f"{name}\n" for name in names))
                handle.flush()

            carry_out(job.writes, tree, done, finished, workers, counted)
        _clear_leftovers(tree)
        job.finish(tree)
        _seal(job, key, tree)
        tree.rename(job.destination)
        fsync_path(job.destination.parent)
        shutil.rmtree(workspace)
    return Outcome(job.destination, total, False)


def _workspace(destination: Path) -> Path:
    return destination.parent / f".{destination.name}.converting"


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
        job.destination.rmdir()
        return False
    raise RequestError(str(job.destination), "is already there and is not this conversion", "name another, or move it")


@contextmanager
def _workplace(destination: Path, key: str) -> Iterator[Path]:
    """The hidden directory of a conversion, held by this process alone; what another conversion left is cleared."""
    workspace = _workspace(destination)
    workspace.mkdir(exist_ok=True)
    descriptor = os.open(workspace, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(str(destination), "another process is converting to it", "wait for it") from None
        state = workspace / "key"
        if not state.is_file() or state.read_text() != key:
            for name in ("key", "done"):
                (workspace / name).unlink(missing_ok=True)
            shutil.rmtree(workspace / "tree", ignore_errors=True)
            (workspace / "tree").mkdir()
            state.write_text(key)
        yield workspace
    finally:
        os.close(descriptor)


def _check_room(job: Job, tree: Path) -> None:
    """Raise RequestError where the disk cannot hold the result, before a byte of it is written."""
    present = sum((tree / name).stat().st_blocks * 512 for name in job.sizes if (tree / name).exists())
    needed = max(sum(job.sizes.values()) - present, 0) + (16 << 20)
    found = os.statvfs(tree)
    free = found.f_bavail * found.f_frsize
    if needed > free:
        raise RequestError(
            str(job.destination),
            f"needs {needed / 1e9:.2f} GB, but its file system has {free / 1e9:.2f} GB free",
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
    files = {
        path.relative_to(tree).as_posix(): path.stat().st_size for path in sorted(tree.rglob("*")) if path.is_file()
    }
    receipt = {"format": 1, "key": key, "made_by": f"reasonforge {__version__}", **job.identity, "files": files}
    write_json(tree / RECEIPT, receipt)


def fingerprint(paths: Sequence[Path], root: Path) -> dict[str, list[int]]:
    """Size and time of change of files, by their name below `root`: what tells whether a source has changed."""
    return {os.path.relpath(path, root): [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(set(paths))}
