"""Puts assemblies into files: by copy_file_range where whole pages move, through a small buffer where they do not.

`importing`, `exporting` and `merging` plan the writes; several workers carry them out, and a journal says what is done.
Measured on ext4, 1 GiB: copy_file_range between places that differ within a page takes 1.4 times what it takes between
aligned ones, and writing whole pages from a buffer of 1 MiB takes no longer than the latter; so neither is slower than
cp, and the buffer gives the checksum on the way.
"""

import errno
import math
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from checkpoints_conversion.assembly import PAGE_BYTES, Assembly, Files, Fragment, blocks
from checkpoints_conversion.dtypes import ITEM_BYTES
from checkpoints_conversion.torch_zip import Archive
from reasonforge.errors import RequestError
from reasonforge.progress import Progress

BATCH_BYTES = 128 << 20
"""Bytes that a worker writes before it waits for the disk and the journal says so: what a kill can cost."""

FLUSH_BYTES = 16 << 20
"""Bytes after which the disk is set to work on them while the worker goes on: cp leaves all of it to the end."""

_CANNOT = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EBADF, errno.ETXTBSY}
"""What copy_file_range(2) answers where source or target lies on a file system that it does not serve."""

Combine = Callable[[list[memoryview]], bytes]


@dataclass(frozen=True, slots=True)
class Write:
    """A tensor's payload at a place in a file of the result, in a torch archive where the format needs one."""

    assembly: Assembly
    file: str
    """Name in the result's directory."""
    offset: int
    """Of the payload, in bytes."""
    archive: Archive | None = None
    others: tuple[Assembly, ...] = ()
    """Further tensors of the same shape and type that go in."""
    combine: Combine | None = None
    """Makes one block of a block of each tensor that goes in; None copies the only one."""
    dtype: str | None = None
    """What `combine` makes, where that is another type than the assembly's."""

    @property
    def bytes(self) -> int:
        """Of the payload."""
        return math.prod(self.assembly.shape) * ITEM_BYTES[self.dtype or self.assembly.dtype]


def carry_out(
    writes: Sequence[Write],
    directory: Path,
    done: frozenset[str],
    finished: Callable[[Sequence[str]], None],
    workers: int,
    progress: Progress,
) -> None:
    """Do every write that is not done yet.

    Args:
        directory: where the files are; they exist, and have their size.
        done: names (`name_of`) of the writes that an earlier attempt finished.
        finished: called with the names of writes whose bytes are on the disk; never by two workers at once.
        workers: threads; the kernel copies without holding Python back.
    """
    left = [write for write in writes if name_of(write) not in done]
    progress.resume(sum(write.bytes for write in writes) - sum(write.bytes for write in left))
    lock, stop = threading.Lock(), threading.Event()
    turns = {write.file: threading.Lock() for write in left}

    def work(batch: Sequence[Write], flusher: Executor) -> None:
        if stop.is_set():
            return
        try:
            with Files() as files, Target(directory / batch[0].file, flusher, turns[batch[0].file]) as target:
                for write in batch:
                    put(write, files, target)
            with lock:
                finished([name_of(write) for write in batch])
                progress.advance(sum(write.bytes for write in batch))
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(workers) as flusher, ThreadPoolExecutor(workers) as pool:
        for result in [pool.submit(work, batch, flusher) for batch in _batches(left)]:
            result.result()


class Target:
    """A file of the result, open for one batch; on leaving, what was written is on the disk.

    Workers take turns at writing to one file: the kernel lets one at a time do it, and whoever waits in there spins.
    """

    def __init__(self, path: Path, flusher: Executor, turn: threading.Lock):
        self._path, self._flusher, self._turn = path, flusher, turn
        self._unflushed = 0
        self._flush: Future[None] | None = None

    def __enter__(self) -> Self:
        self.descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self._flush is not None:
                self._flush.result()
            if kind is None:
                os.fdatasync(self.descriptor)
        finally:
            os.close(self.descriptor)

    def write(self, data: memoryview, offset: int) -> None:
        """Put bytes at a place."""
        done = 0
        with self._turn:
            while done < len(data):
                done += os.pwrite(self.descriptor, data[done:], offset + done)
        self._wrote(len(data))

    def copy(self, source: int, count: int, begin: int, end: int) -> int:
        """Let the kernel copy `count` bytes of a descriptor from `begin` to `end`; how many it did, 0 past its end."""
        with self._turn:
            copied = os.copy_file_range(source, self.descriptor, count, begin, end)
        self._wrote(copied)
        return copied

    def _wrote(self, count: int) -> None:
        """Count bytes, and let the disk begin with them when there are many."""
        self._unflushed += count
        if self._unflushed >= FLUSH_BYTES and (self._flush is None or self._flush.done()):
            self._unflushed = 0
            self._flush = self._flusher.submit(os.fdatasync, self.descriptor)


def name_of(write: Write) -> str:
    """What the journal calls a write: its place in the result."""
    return f"{write.file}:{write.offset}"


def _batches(writes: Sequence[Write]) -> Iterator[list[Write]]:
    """Runs of writes into one file, of about BATCH_BYTES."""
    batch: list[Write] = []
    size = 0
    for write in writes:
        if batch and (size >= BATCH_BYTES or write.file != batch[-1].file):
            yield batch
            batch, size = [], 0
        batch.append(write)
        size += write.bytes
    if batch:
        yield batch


def put(write: Write, files: Files, target: Target) -> None:
    """Do one write, and frame it in its archive with the payload's checksum."""
    if write.archive is None and write.combine is None and _aligned(write):
        copied = all(_copy_pages(fragment, files, target, write.offset) for fragment in write.assembly.fragments)
        if copied:
            return
    place, crc = write.offset, 0
    for data in _content(write, files):
        if write.archive is not None:
            crc = zlib.crc32(data, crc)
        target.write(data, place)
        place += len(data)
    if write.archive is not None:
        head = write.archive.head(crc)
        target.write(memoryview(head), write.offset - len(head))
        target.write(memoryview(write.archive.tail(crc)), place)


def _content(write: Write, files: Files) -> Iterator[memoryview]:
    """The payload, block by block."""
    if write.combine is None:
        for _, block in blocks(write.assembly, files, write.offset):
            yield block
        return
    sources = [blocks(item, files, write.offset, by_rows=True) for item in (write.assembly, *write.others)]
    for parts in zip(*sources, strict=True):
        yield memoryview(write.combine([block for _, block in parts]))


def _aligned(write: Write) -> bool:
    """Whether whole pages can go from source to target: then a file system may share or offload them."""
    return write.assembly.contiguous and all(
        (fragment.source_offset - fragment.offset - write.offset) % PAGE_BYTES == 0
        for fragment in write.assembly.fragments
    )


def _copy_pages(fragment: Fragment, files: Files, target: Target, place: int) -> bool:
    """Let the kernel copy a fragment; False where its file system cannot."""
    source, done = files.descriptor(fragment.file), 0
    while done < fragment.bytes:
        begin, end = fragment.source_offset + done, place + fragment.offset + done
        try:
            count = target.copy(source, min(fragment.bytes - done, FLUSH_BYTES), begin, end)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            return False
        if count == 0:
            raise RequestError(str(fragment.file), f"ends at byte {begin}, before its tensors do", "get it again")
        done += count
    return True
