"""A map over fixed-size shards in worker processes that can be killed at any instant and goes on where it was.

Generation, curation and tokenization use it; the shards are cut by size alone, so workers and kills leave no trace.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from reasonforge.errors import StageError
from reasonforge.files import write_jsonl
from reasonforge.progress import Progress

T = TypeVar("T")
Work = Callable[[int, Sequence[T]], list[dict[str, Any]]]


def map_shards(
    items: Sequence[T], work: Work[T], *, shard_size: int, scratch: Path, workers: int, progress: Progress
) -> Iterator[Path]:
    """Apply `work` to each shard of `items` and publish its rows in `scratch`; returns the files, in order, at the end.

    Args:
        items: what to work on; the same at every attempt in one `scratch`.
        work: takes the shard's index (from 0) and its items, gives its rows; a function that pickle can name
            (of a module, or a functools.partial of one).
        shard_size: items a shard; it decides what a kill loses, so it must not depend on `workers`.
        scratch: where finished shards stay; a shard found there is not done again.
        workers: processes; 1 works in this one.
        progress: counts items.

    Raises what `work` raises, and StageError where a worker process was killed.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    paths = [scratch / f"shard-{index:06d}.jsonl" for index in range(-(-len(items) // shard_size))]
    todo = [index for index, path in enumerate(paths) if not path.exists()]
    pieces = [_Piece(index, items[index * shard_size : (index + 1) * shard_size], paths[index]) for index in todo]
    progress.resume(len(items) - sum(len(piece.items) for piece in pieces))
    if workers == 1 or len(pieces) <= 1:
        for piece in pieces:
            write_jsonl(piece.path, work(piece.index, piece.items))
            progress.advance(len(piece.items))
    else:
        counts = [len(piece.items) for piece in pieces]
        work_in_processes(partial(_work_shard, work), pieces, counts, workers=workers, progress=progress)
    return iter(paths)


def work_in_processes(
    work: Callable[[T], object], items: Sequence[T], units: Sequence[int], *, workers: int, progress: Progress
) -> None:
    """Do `work` on each of the items, whose results it keeps itself, in worker processes.

    Args:
        work: a function that pickle can name (of a module, or a functools.partial of one).
        units: what `progress` counts of each item.

    Raises what `work` raises, and StageError where a worker process was killed.
    """
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("spawn")  # a fork of a process that has torch's threads may hang
    waiting = iter(zip(items, units, strict=True))
    running: dict[Future[object], int] = {}
    with ProcessPoolExecutor(min(workers, len(items)), mp_context=context, initializer=_start_worker) as pool:
        try:
            while True:
                for item, count in waiting:
                    running[pool.submit(work, item)] = count
                    if len(running) >= 2 * workers:
                        break
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    future.result()
                    progress.advance(running.pop(future))
        except BrokenExecutor:
            raise StageError(
                "a worker process was killed (out of memory?); finished shards are kept, so run the stage again, "
                "with fewer workers where memory is short"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class _Piece(Generic[T]):
    """One shard: its number, what is in it, and the file that holds its rows once it is done."""

    index: int
    items: Sequence[T]
    path: Path


def _work_shard(work: Work[T], piece: _Piece[T]) -> None:
    write_jsonl(piece.path, work(piece.index, piece.items))


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent is gone: an idle worker would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    from multiprocessing.connection import wait as wait_for

    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)
