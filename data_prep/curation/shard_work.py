"""What curation does with one shard of rows alone: verify, annotate, filter, and prepare what needs all shards.

`curation` runs it, in worker processes or in its own, and `gathering` reads what it leaves: the rows, kept and
dropped, and a mark for each. The marks are the shard's receipt: where they are, the shard is done.
"""

import base64
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.annotation import annotate
from data_prep.curation.steps import Steps
from data_prep.grading import GradingPool
from data_prep.overlap.decontamination import Benchmark, EvaluationIndex
from data_prep.overlap.deduplication import equality_key
from data_prep.overlap.sketching import sketch_rows
from data_prep.sources.lines import Line, Span, check_columns, count_lines, line_before, lines_of, parse_line
from data_prep.sources.rows import Source, checked_rows, place_of
from reasonforge.errors import RequestError
from reasonforge.files import jsonl_line, published
from reasonforge.jsonl import BadRow, Row
from reasonforge.progress import Progress

BATCH_ROWS = 250
"""Rows that are filtered at a time; what comes out does not depend on it."""
BATCH_CHARACTERS = 4_000_000
"""Characters of responses from which a batch is not made longer."""

_COUNTS = ("completion_tokens", "response_length")
"""Where a row has the tokens of its response: from its teacher, or from the annotation `tokens`."""

Said = tuple[str, str] | None
"""The step that drops a row and its reason; None where it is kept."""


@dataclass(frozen=True)
class Shard:
    """A range of a file's bytes, with its number among those of all files."""

    index: int
    source: Source
    span: Span

    @property
    def path(self) -> Path:
        """The file."""
        return self.source.path

    def place(self, line: int) -> str:
        """Where a line of the file is, as the user knows it."""
        return place_of(self.source.origin, line)


@dataclass(frozen=True)
class ShardJob:
    """What all shards have in common."""

    steps: Steps
    scratch: Path
    evaluation: tuple[Benchmark, ...] = ()
    """Where the evaluation problems are that rows must not share words with."""

    def rows(self, shard: Shard) -> Path:
        """The file of a shard's rows."""
        return self.scratch / f"rows-{shard.index:06d}.jsonl"

    def marks(self, shard: Shard) -> Path:
        """The file of their marks, published after the rows.

        A mark has the row's `line` in the shard, `id`, `size` (bytes of its line in the shard's file), `verdict`,
        `tokens`, its `problem` where that was annotated by; of a dropped row the step with its reason (`dropped`), of
        another its equality `key`, its `hits` and its `sketch`. Marks of bad lines follow (`line`, `bad`, `problem`,
        `head`), and one with the number of `lines`.
        """
        return self.scratch / f"marks-{shard.index:06d}.jsonl"


class Workbench:
    """Does shards of one job, one after the other, with one pool of graders and one index."""

    def __init__(self, job: ShardJob, workers: int = 1):
        steps = job.steps
        self._job, self._steps = job, steps
        self._names = steps.filter_names
        self._pool = GradingPool(steps.grader, workers) if steps.grader is not None else None
        self._index: EvaluationIndex | None = None
        if steps.decontaminate is not None:
            self._index = EvaluationIndex(_problems(job.evaluation), steps.decontaminate)

    def close(self) -> None:
        """End the graders' processes."""
        if self._pool is not None:
            self._pool.close()

    def work(self, shard: Shard, progress: Progress | None = None) -> None:
        """Do a shard and leave its two files. Raises RequestError, with its line, for a bad row that is refused."""
        with published(self._job.marks(shard)) as marks, published(self._job.rows(shard)) as rows:  # there before them
            for line, mark in self._marked(shard, progress):
                rows.write(line)
                marks.write(jsonl_line(mark).encode())

    def _marked(self, shard: Shard, progress: Progress | None) -> Iterator[tuple[bytes, Row]]:
        numbers: deque[int] = deque()
        bad: list[Line] = []
        rows = self._read(shard, numbers, bad)
        graded = self._pool.grade(rows, progress) if self._pool is not None else rows
        annotated = annotate(graded, self._steps.annotate)
        while batch := _batch(annotated):
            for row, mark in zip(batch, self._judge(batch), strict=True):
                line = jsonl_line(row).encode()
                yield line, {"line": numbers.popleft(), "id": row["id"], "size": len(line), **mark}
        for one in bad:
            if isinstance(one.row, BadRow):
                yield b"", {"line": one.number, "bad": one.row.kind, "problem": str(one.row), "head": one.head}
        yield b"", {"lines": count_lines(shard.path, shard.span)}

    def _read(self, shard: Shard, numbers: "deque[int]", bad: list[Line]) -> Iterator[Row]:
        """The rows of the problems that begin in a shard, so that no problem's rows are divided."""
        for line, ours in _of_problems(shard, self._steps.columns):
            if not isinstance(line.row, BadRow):
                numbers.append(line.number)
                yield line.row
            elif ours:
                if self._steps.bad_rows == "refuse":
                    number = count_lines(shard.path, (0, shard.span[0])) + line.number
                    raise RequestError(shard.place(number), str(line.row), line.row.remedy)
                bad.append(line)

    def _judge(self, rows: list[Row]) -> list[Row]:
        """The marks of some rows; a row that is dropped gets its `dropped_by` and `reason`."""
        marks: list[Row] = []
        left = []
        for place, row in enumerate(rows):
            tokens = [row[name] for name in _COUNTS if row.get(name) is not None]
            mark = {"verdict": row.get("verdict", ""), "tokens": tokens[0] if tokens else None}
            if self._steps.annotate:
                mark["problem"] = row.get("problem_id")
            said = self._filter(row)
            if said is None:
                left.append(place)
            else:
                mark["dropped"] = said
                row["dropped_by"], row["reason"] = said
            marks.append(mark)
        self._prepare([rows[place] for place in left], [marks[place] for place in left])
        return marks

    def _filter(self, row: Row) -> Said:
        for name, one in zip(self._names, self._steps.filters, strict=True):
            if (reason := one.reason(row)) is not None:
                return name, reason
        return None

    def _prepare(self, rows: list[Row], marks: list[Row]) -> None:
        """Add what tells duplicates, evaluation problems and near-duplicates."""
        steps = self._steps
        if not rows:
            return
        if steps.deduplicate:
            for row, mark in zip(rows, marks, strict=True):
                mark["key"] = equality_key(row).hex()
        if self._index is not None and steps.decontaminate is not None:
            for mark, hits in zip(marks, _hits(self._index, steps.decontaminate.columns, rows), strict=True):
                if hits:
                    mark["hits"] = hits
        if steps.near_duplicates is not None:
            for mark, signature in zip(marks, sketch_rows(rows, steps.near_duplicates), strict=True):
                mark["sketch"] = base64.b64encode(signature.tobytes()).decode()


def work_shard(job: ShardJob, shard: Shard) -> None:
    """`Workbench.work` in a worker process, which keeps its workbench for the next shard."""
    key = (repr(job), os.getpid())
    if key not in _benches:
        _benches.clear()
        _benches[key] = Workbench(job)
    _benches[key].work(shard)


_benches: dict[tuple[str, int], Workbench] = {}


def _batch(rows: Iterator[Row]) -> list[Row]:
    """The next rows, fewer where they are long."""
    batch: list[Row] = []
    characters = 0
    for row in islice(rows, BATCH_ROWS):
        batch.append(row)
        characters += len(row.get("response") or "")
        if characters >= BATCH_CHARACTERS:
            break
    return batch


def _of_problems(shard: Shard, columns: Sequence[str]) -> Iterator[tuple[Line, bool]]:
    """The lines of the problems that begin in a shard, and whether they begin in it themselves.

    A problem's rows stand next to each other: those at the shard's beginning that go on with the last problem before
    it belong to the shard before, and rows behind its end that go on with its last one belong to it.
    """
    before = _problem_before(shard.path, shard.span[0], columns)
    begun, current = before is None, None
    end, total = shard.span[1], shard.path.stat().st_size
    for line in lines_of(shard.path, (shard.span[0], total), columns):
        ours = line.start < end
        problem = None if isinstance(line.row, BadRow) else line.row.get("problem_id")
        if isinstance(line.row, BadRow):
            if ours:
                yield line, True
        elif not begun and problem == before and ours:
            continue
        elif ours or (begun and problem is not None and problem == current):
            begun, current = True, problem
            yield line, ours
        else:
            return


def _problem_before(source: Path, position: int, columns: Sequence[str]) -> Any:
    """The problem of the last row before a place where a line may begin; None where there is none, or no row."""
    with open(source, "rb") as handle:
        handle.seek(max(position - 1, 0))
        place = handle.tell() + len(handle.readline()) if position else 0
    while found := line_before(source, place):
        place, line = found
        try:
            row = parse_line(line)
            check_columns(row, columns)
            return row.get("problem_id")
        except BadRow:
            continue
    return None


def _problems(benchmarks: Sequence[Benchmark]) -> Iterator[Row]:
    """The evaluation problems of all files; those without a name of their own are not told apart from the stage's.

    Raises RequestError for a file of the user's without any: nothing would be found, and nobody would wonder.
    """
    for one in benchmarks:
        number = 0
        for number, row in enumerate(checked_rows(Path(one.path), (one.column,)), start=1):
            name = {"benchmark": one.name} if one.name is not None else {}
            yield {"id": str(row.get("id", number - 1)), "prompt": row[one.column], **name}
        if not number and one.name is not None:
            raise RequestError(one.path, "no evaluation problems in it")


def _hits(index: EvaluationIndex, columns: Sequence[str], rows: list[Row]) -> list[list[Row]]:
    hits: list[list[Row]] = [[] for _ in rows]
    for column in columns:
        named = {} if column == "prompt" else {"column": column}
        for row_hits, found in zip(hits, index.find([row[column] for row in rows]), strict=True):
            row_hits.extend({**hit, **named} for hit in found)
    return hits
