import json
import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data_prep.shards import map_shards
from reasonforge.errors import RequestError, StageError
from reasonforge.progress import Progress


def square(log: Path, index: int, items: Sequence[int]) -> list[dict[str, Any]]:
    with open(log, "a") as handle:
        handle.write(f"{index}\n")
    return [{"n": item, "square": item * item} for item in items]


def refuse(index: int, items: Sequence[int]) -> list[dict[str, Any]]:
    if index == 1:
        raise RequestError("row 7", "is bad", "mend it")
    return []


def overflow(index: int, items: Sequence[int]) -> list[dict[str, Any]]:
    raise ValueError(f"shard {index} does not fit")


def die(index: int, items: Sequence[int]) -> list[dict[str, Any]]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def content(paths: Sequence[Path]) -> list[int]:
    return [json.loads(line)["square"] for path in paths for line in path.read_text().splitlines()]


@pytest.mark.parametrize("workers", [1, 3])
def test_order_and_resumption(tmp_path: Path, workers: int) -> None:
    items, log, scratch = list(range(23)), tmp_path / "log", tmp_path / "scratch"

    def run() -> list[int]:
        progress = Progress("squaring", len(items), "numbers")
        found = map_shards(
            items, partial(square, log), shard_size=4, scratch=scratch, workers=workers, progress=progress
        )
        assert progress.done == 23
        return content(list(found))

    assert run() == [item * item for item in items]
    (scratch / "shard-000002.jsonl").unlink()
    (scratch / "shard-000005.jsonl").unlink()
    (scratch / ".shard-000002.jsonl.1.tmp").write_text('{"torn')
    assert run() == [item * item for item in items]
    done = sorted(map(int, log.read_text().split()))
    assert done == [0, 1, 2, 2, 3, 4, 5, 5]


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_the_work_surface(tmp_path: Path, workers: int) -> None:
    progress = Progress("working", 8, "items")
    with pytest.raises(RequestError, match="row 7: is bad; mend it"):
        map_shards(range(8), refuse, shard_size=2, scratch=tmp_path / "a", workers=workers, progress=progress)
    with pytest.raises(ValueError, match=r"shard \d does not fit"):
        map_shards(range(8), overflow, shard_size=2, scratch=tmp_path / "b", workers=workers, progress=progress)


def test_a_killed_worker_is_an_error_in_one_line(tmp_path: Path) -> None:
    progress = Progress("working", 8, "items")
    with pytest.raises(StageError, match="a worker process was killed"):
        map_shards(range(8), die, shard_size=2, scratch=tmp_path, workers=2, progress=progress)


def test_nothing_gives_nothing(tmp_path: Path) -> None:
    progress = Progress("working", 0, "items")
    assert list(map_shards([], refuse, shard_size=2, scratch=tmp_path, workers=2, progress=progress)) == []
