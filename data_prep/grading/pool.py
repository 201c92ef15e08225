"""Grading many rows in worker processes with hard limits; order is kept and the result is that of one worker.

What a grader decides at once is decided here; only the pairs that need more go to workers, each pair once.
`curate` and `evaluate` call it. A worker that exceeds its limit is dead, and only the guilty pair is a timeout.
"""

import json
import os
import selectors
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self, cast

from data_prep.grading.base import ALL_VERDICTS, BaseGrader, Verdict
from reasonforge.errors import RequestError, StageError
from reasonforge.processes import start_piped
from reasonforge.progress import Progress

WINDOW = 512
"""Rows held back while an earlier one is still being graded."""
REMEMBERED = 65_536
"""Verdicts kept for pairs that come again, as the samples of one problem do."""

ERROR = "error "
"""What a worker's line begins with that carries an error for the user."""

Pair = tuple[str, str]


def grade_rows(
    rows: Iterable[dict[str, Any]], grader: BaseGrader, workers: int, progress: Progress | None = None
) -> Iterator[dict[str, Any]]:
    """Each row (with `response` and what `grader.gold` reads) plus its `verdict` and `extracted`, as a stream in order.

    Raises RequestError where this machine or an endpoint cannot grade as asked, StageError where a worker cannot
    start or fails in a way that is not the answer's fault.
    """
    with GradingPool(grader, workers) as pool:
        yield from pool.grade(rows, progress)


class GradingPool:
    """Worker processes of one grader. They start when the first pair needs them and stay until the pool is left.

    Args:
        grader: what compares.
        workers: processes, at least 1.
    """

    def __init__(self, grader: BaseGrader, workers: int):
        self._grader, self._count = grader, max(workers, 1)
        self._workers: list[_Worker] = []
        self._known: OrderedDict[Pair, Verdict] = OrderedDict()
        self._queue: deque[Pair] = deque()
        self._waiting: set[Pair] = set()
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes; the pool grades no more."""
        for worker in self._workers:
            worker.close()
        self._selector.close()

    def grade(self, rows: Iterable[dict[str, Any]], progress: Progress | None = None) -> Iterator[dict[str, Any]]:
        """See `grade_rows`; may be called again and again."""
        extracted: deque[tuple[dict[str, Any], str | None]] = deque()

        def decided() -> Iterator[tuple[Pair, Verdict | None]]:
            for row in rows:
                answer, gold = self._grader.extract(row["response"]), self._grader.gold(row)
                extracted.append((row, answer))
                yield (gold, answer or ""), self._grader.decide(gold, answer)

        for verdict in self.verdicts(decided()):
            row, answer = extracted.popleft()
            if progress:
                progress.advance()
            yield {**row, "verdict": verdict, "extracted": answer}

    def verdicts(self, pairs: Iterable[tuple[Pair, Verdict | None]]) -> Iterator[Verdict]:
        """The verdict on each pair, in order; a pair that comes with one keeps it."""
        source = iter(pairs)
        window: deque[tuple[Pair, Verdict | None]] = deque()
        exhausted = False
        while True:
            while not exhausted and len(window) < WINDOW:
                item = next(source, None)
                if item is None:
                    exhausted = True
                    break
                window.append(self._admit(*item))
                if window[0][1]:
                    break
            if not window:
                return
            pair, verdict = window[0]
            verdict = verdict or self._known.get(pair)
            if verdict:
                window.popleft()
                yield verdict
            else:
                self._work()

    def _admit(self, pair: Pair, verdict: Verdict | None) -> tuple[Pair, Verdict | None]:
        """Queue a comparison that nobody has asked for yet."""
        verdict = verdict or self._known.get(pair)
        if verdict is None and pair not in self._waiting:
            self._waiting.add(pair)
            self._queue.append(pair)
        return pair, verdict

    def _work(self) -> None:
        """Give idle workers their next batch, then wait until some worker has said something or died."""
        while len(self._workers) < min(self._count, len(self._queue) // self._grader.batch + 1):
            worker = _Worker(self._grader)
            self._workers.append(worker)
            self._selector.register(worker.output, selectors.EVENT_READ, worker)
        for worker in self._workers:
            if worker.idle and self._queue:
                worker.send([self._queue.popleft() for _ in range(min(self._grader.batch, len(self._queue)))])
        for key, _ in self._selector.select(timeout=1.0):
            worker = cast(_Worker, key.data)
            if not worker.listen(self._learn):
                self._bury(worker)
        for worker in self._workers:
            if worker.stalled:
                worker.kill()

    def _learn(self, pair: Pair, verdict: Verdict) -> None:
        self._waiting.discard(pair)
        self._known[pair] = verdict
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def _bury(self, worker: "_Worker") -> None:
        """Its first open pair has killed it; the others are graded by the next worker."""
        self._selector.unregister(worker.output)
        self._workers.remove(worker)
        guilty, *innocent = worker.reap()
        self._learn(guilty, "timeout")
        self._queue.extendleft(reversed(innocent))


class _Worker:
    """One `python -m data_prep.grading.worker`, and the pairs that it has not answered yet."""

    def __init__(self, grader: BaseGrader):
        self._silence_s = grader.silence_s
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._process = start_piped(
            [sys.executable, "-P", "-m", "data_prep.grading.worker", grader.model_dump_json()],
            # One order of sympy's sets for all workers of all attempts.
            {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"},
        )
        self._open: deque[Pair] = deque()
        self._ready = False
        self._buffer = b""
        self._heard = time.monotonic()

    @property
    def output(self) -> Any:
        """The pipe that it answers on."""
        return self._process.stdout

    @property
    def idle(self) -> bool:
        """Whether it has answered all."""
        return not self._open

    @property
    def stalled(self) -> bool:
        """Whether it has been silent for so long that its CPU limit must have failed."""
        return not self.idle and time.monotonic() - self._heard > self._silence_s

    def send(self, pairs: list[Pair]) -> None:
        """Give it work. It reads the whole line before it answers, so neither pipe can block the other."""
        self._open.extend(pairs)
        self._heard = time.monotonic()
        try:
            _write_all(self._process.stdin, (json.dumps(pairs) + "\n").encode())
        except BrokenPipeError:
            return  # It died; the end of its output says so next.

    def listen(self, learn: Callable[[Pair, Verdict], None]) -> bool:
        """Take what it has said; False where it has ended. Raises the error that it met, where a user can mend that."""
        data = os.read(self.output.fileno(), 65_536)
        self._heard = time.monotonic()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            word = line.decode()
            if word in ALL_VERDICTS:
                learn(self._open.popleft(), word)
            elif word.startswith(ERROR):
                parts = json.loads(word.removeprefix(ERROR))
                raise RequestError(*parts) if len(parts) > 1 else StageError(*parts)
            else:
                self._ready = True
        return bool(data)

    def kill(self) -> None:
        """End it at once; the end of its output tells the rest."""
        self._process.kill()

    def close(self) -> None:
        """End it and give back what it held."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def reap(self) -> deque[Pair]:
        """The pairs that a worker which a signal ended left open. Raises StageError where it failed otherwise."""
        code = self._process.wait()
        self.close()
        if not self._ready or code >= 0 or not self._open:
            doing = "grading" if self._ready else "starting"
            raise StageError(
                f"data_prep.grading.worker: failed while {doing} (exit status {code}); its error is in the log above"
            )
        return self._open


def _write_all(pipe: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[pipe.write(view) :]
