"""The hidden directory where a conversion works: its tree, and what survives a kill. `publishing` is the only caller.

Below it each plan has a directory of its own, so that no task of another conversion, late or stale, writes into its
tree. Each task keeps a journal of the writes that are on the disk; a mark, by rename, says that all of a task's are.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from checkpoints_conversion.tasks import Task
from reasonforge.errors import RequestError
from reasonforge.files import write_atomic

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What flock(2) answers on a file system without locks, as Lustre may be mounted: it then holds nobody back."""


class Workspace:
    """The hidden directory beside a destination, for one plan."""

    def __init__(self, destination: Path, plan: str):
        self.destination = destination
        self.root = destination.parent / f".{destination.name}.converting"
        self.place = self.root / plan[:16]
        self.tree = self.place / "tree"
        self._ready = self.place / "ready"

    @property
    def ready(self) -> bool:
        """Whether the first task has made the files, so that the others can write into them."""
        return self._ready.is_file()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the directory for this process alone, as far as the file system has locks."""
        self.root.mkdir(exist_ok=True)
        with _locked(self.root / "lock", self.destination):
            yield

    def prepare(self) -> None:
        """Clear what another plan left, and make the tree."""
        for path in self.root.iterdir():
            if path.is_dir() and path != self.place:
                shutil.rmtree(path)
        self.tree.mkdir(parents=True, exist_ok=True)

    def open(self) -> None:
        """Let the other tasks begin."""
        if not self.ready:
            write_atomic(self._ready, "")

    def done(self) -> frozenset[str]:
        """The writes that are on the disk, whichever task made them. A line that a kill cut short is none."""
        texts = [path.read_text(encoding="utf-8") for path in self.place.glob("done.*")]
        return frozenset(name for text in texts for name in text.rpartition("\n")[0].split("\n"))

    @contextmanager
    def journal(self, task: Task) -> Iterator["Journal"]:
        """A task's journal, held by one process, as far as the file system has locks."""
        path = self.place / f"done.{task.number}"
        with (
            _locked(self.place / f"lock.{task.number}", self.destination),
            open(path, "a", encoding="utf-8") as handle,
        ):
            if handle.tell():
                handle.write("\n")
            yield Journal(handle)
            handle.flush()
            os.fsync(handle.fileno())

    def mark(self, task: Task) -> None:
        """Say that all writes of a task are on the disk."""
        write_atomic(self._mark(task), "")

    def marked(self, task: Task) -> bool:
        """Whether they are."""
        return self._mark(task).is_file()

    def missing(self, tasks: int) -> list[int]:
        """The tasks that have not finished their writes."""
        return [number for number in range(tasks) if not self.marked(Task(number, tasks))]

    def _mark(self, task: Task) -> Path:
        return self.place / f"wrote.{task.number}-of-{task.tasks}"

    def activity(self) -> list[tuple[str, int]]:
        """What changes while any task works."""
        try:
            return sorted((entry.name, entry.stat().st_size) for entry in os.scandir(self.place))
        except FileNotFoundError:
            return []

    def clear(self) -> None:
        """Delete all of it; what NFS still keeps for an open file goes with the next conversion."""
        shutil.rmtree(self.root, ignore_errors=True)


class Journal:
    """The names of finished writes, one a line."""

    def __init__(self, handle: TextIO):
        self._handle = handle

    def add(self, names: Sequence[str]) -> None:
        """Note writes that are on the disk."""
        self._handle.write("".join(f"{name}\n" for name in names))
        self._handle.flush()


@contextmanager
def _locked(path: Path, destination: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(str(destination), "another process is converting to it", "wait for it") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)
