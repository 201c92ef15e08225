"""Traces that others made, from files or the Hub: rows with a prompt and a response become traces as `generate` writes
them. The stage `traces` and the commands `reasonforge data …` call it.
"""

import json
import os
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import Field, field_validator

from data_prep.curation.steps import OnBadRows
from data_prep.generation.sampling import TRACE_COLUMNS, publish_traces
from data_prep.overlap.identities import Identities
from data_prep.sources.hub import commit_of, is_hub
from data_prep.sources.lines import Line
from data_prep.sources.problems import RESERVED, normalise
from data_prep.sources.rows import bad_line, files_of, needs_of, pick, read_lines, refuse
from reasonforge.config import Strict
from reasonforge.errors import nearest
from reasonforge.files import jsonl_line, sha256_text
from reasonforge.jsonl import BadRow, Row
from reasonforge.progress import Progress


class FileTraces(Strict):
    """Traces from files or the Hub, one after the other. Those of one problem are brought together."""

    type: Literal["files"] = "files"
    paths: list[str] = Field(min_length=1)
    """Files (.jsonl, .jsonl.gz, .jsonl.zst, .parquet), splits that `Dataset.save_to_disk` wrote, or names on the Hub
    (`hub:OWNER/NAME?config=…&split=…&revision=…`). Relative paths start at the current directory."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Which of their columns is ours, where the names differ: `{response: generation, answer: solution}`. A dotted
    name goes into a value: `{prompt: messages.0.content, response: messages.-1.content}`. Null leaves ours empty
    (`answer: null`, where there are tests instead)."""
    teacher: str | None = None
    """Who wrote the responses, where the rows do not say."""
    bad_rows: OnBadRows = "refuse"
    """Whether a line that is no trace ends the work, or is set aside in `bad.jsonl` and counted."""
    licence: str | None = None
    """Under which the traces are given, for the dataset card: an SPDX identifier ("apache-2.0"), as the Hub has it."""

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, columns: dict[str, str | None]) -> dict[str, str | None]:
        for name in columns:
            if name not in TRACE_COLUMNS:
                raise ValueError(f"{name!r} is no column of a trace; {nearest(name, TRACE_COLUMNS)}")
        return columns

    @property
    def needs(self) -> tuple[str, ...]:
        """What reads the files."""
        return tuple(dict.fromkeys(module for path in self.paths for module in needs_of(Path(path))))

    @property
    def external_files(self) -> tuple[Path, ...]:
        """The user's files; what is on the Hub is pinned by its revision, where one is given."""
        return tuple(file for path in self.paths for file in files_of(Path(path)))

    def write(self, out: Path, scratch: Path, progress: Progress | None = None) -> dict[str, Any]:
        """Write `traces.jsonl` and, where bad rows are set aside, `bad.jsonl` into `out`; returns counts.

        In memory are four numbers and a hash of each row, and a hash of each problem. Raises RequestError with file
        and line, also for an id that another row has, whatever file that is in.
        """
        scratch.mkdir(parents=True, exist_ok=True)
        imported = _Import(self, progress)
        with open(scratch / "imported.jsonl", "w+b") as copy, open(scratch / "bad.jsonl", "wb") as bad:
            imported.read(copy, bad)
            imported.check_ids(copy, bad)
            counts = publish_traces(imported.together(copy), out / "traces.jsonl")
        if self.bad_rows == "set_aside":
            os.replace(scratch / "bad.jsonl", out / "bad.jsonl")
            counts["set_aside"] = imported.set_aside
        return {**counts, **imported.commits}


class _Import:
    """Reads the rows of a source in their order, and gives them again with those of a problem together."""

    def __init__(self, source: FileTraces, progress: Progress | None):
        self._source, self._progress = source, progress
        self._numbers: dict[bytes, int] = {}
        self._samples = array("q")
        """Of each problem, the rows that were read."""
        self._places = array("q")
        """Of each row, where its line begins in the copy."""
        self._problems = array("q")
        """Of each row, the number of its problem."""
        self._ids = Identities()
        self._again = bytearray()
        """Of each row, 1 where an earlier one has its id: it is left out."""
        self.set_aside = 0
        self.commits: dict[str, str] = {}

    def read(self, copy: IO[bytes], bad: IO[bytes]) -> None:
        """Write the traces into `copy`, and what is none into `bad` where that is wanted."""
        for path in map(Path, self._source.paths):
            if is_hub(path):
                self.commits[f"commit_of_{path}"] = commit_of(path)
            self._ids.enter(path)
            for line in read_lines(path):
                try:
                    if isinstance(line.row, BadRow):
                        raise line.row
                    row = self._trace(line.row)
                except BadRow as error:
                    if self._source.bad_rows == "refuse":
                        raise refuse(path, line.number, error) from None
                    self.set_aside += 1
                    bad.write(bad_line(path, line, error))
                    continue
                self._ids.add(row["id"], line.number)
                self._places.append(copy.tell())
                copy.write(jsonl_line(row).encode())
                if self._progress is not None:
                    self._progress.advance()
        copy.flush()

    def check_ids(self, copy: IO[bytes], bad: IO[bytes]) -> None:
        """Refuse the first row whose id an earlier one has, or set all of them aside."""
        self._again = bytearray(len(self._places))
        for repeat in self._ids.repeats():
            found = self._row(copy, repeat.number)["id"]
            problem = f"the id {found!r} comes again: {self._ids.place(repeat.first)} has it already"
            error = BadRow("duplicated id", problem, "give each row an id of its own")
            path, line = self._ids.source(repeat.number)
            if self._source.bad_rows == "refuse":
                raise refuse(path, line, error)
            self.set_aside += 1
            bad.write(bad_line(path, Line(line, 0, error), error))
            self._again[repeat.number] = 1

    def together(self, copy: IO[bytes]) -> Iterator[Row]:
        """The traces, by problem as they first came, then as they came."""
        for number in sorted(range(len(self._places)), key=self._problems.__getitem__):
            if not self._again[number]:
                yield self._row(copy, number)

    def _row(self, copy: IO[bytes], number: int) -> Row:
        """A row that was read, again."""
        copy.seek(self._places[number])
        row: Row = json.loads(copy.readline())
        return row

    def _trace(self, row: Row) -> Row:
        """A row as a trace, with its further columns behind. Raises BadRow where it is none."""
        columns = self._source.columns
        found = {name: pick(row, columns.get(name, name), needed=name in columns) for name in TRACE_COLUMNS}
        used = {column for column in columns.values() if column is not None}
        for name in ("prompt", "answer", "response"):
            found[name] = _text(found[name], columns.get(name, name))
        problem = str(found["problem_id"]) if _is_name(found["problem_id"]) else problem_id(found["prompt"])
        sample = self._count(problem)
        found |= {"problem_id": problem, "sample": sample, "teacher": found["teacher"] or self._source.teacher}
        found["id"] = str(found["id"]) if _is_name(found["id"]) else f"{problem}/{sample}"
        for name in ("prompt_tokens", "completion_tokens"):
            found[name] = found[name] if isinstance(found[name], int) else None
        extra = {name: value for name, value in row.items() if name not in used}
        mapped = columns.keys()
        return found | {
            f"source_{name}" if name in RESERVED else name: value
            for name, value in extra.items()
            if name not in TRACE_COLUMNS or name in mapped
        }

    def _count(self, problem: str) -> int:
        """Which sample of its problem the next row is."""
        key = blake2b(problem.encode(), digest_size=16).digest()
        number = self._numbers.setdefault(key, len(self._numbers))
        if number == len(self._samples):
            self._samples.append(0)
        self._problems.append(number)
        self._samples[number] += 1
        return self._samples[number] - 1


def problem_id(prompt: str) -> str:
    """The id of a problem that has none, as the stage `problems` makes it."""
    return sha256_text(normalise(prompt))[:16]


def _text(value: Any, column: str | None) -> str:
    """A text; a number becomes one. Raises BadRow."""
    if column is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(f"no column {column!r}" if value is None else f"{column!r} is no text")
    return str(value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and str(value) != ""
