"""What curation does with all shards together: equal rows, evaluation problems, near-duplicates and selections.

`curation` calls `gather`. It goes through the shards in order, once; of each row it holds hashes and a signature, and
a text only where two are compared.
"""

import base64
import json
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from itertools import compress, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from data_prep.curation.funnel import Funnel
from data_prep.curation.shard_work import Shard, ShardJob
from data_prep.generation.sampling import MakeProgress
from data_prep.grading import VERDICTS
from data_prep.overlap.deduplication import Deduplicator, Duplicate
from data_prep.overlap.identities import Identities
from data_prep.overlap.sketching import SketchedDeduplicator
from data_prep.sources.rows import Source
from reasonforge.errors import RequestError, StageError
from reasonforge.files import fsync_path, jsonl_line, read_jsonl, write_json
from reasonforge.jsonl import Row
from reasonforge.progress import Progress

if TYPE_CHECKING:
    from data_prep.overlap.minhash import Signatures

BATCH_ROWS = 1000
"""Marks that are read at a time; what comes out does not depend on it."""

DATASET, DROPPED, BAD, FUNNEL = "dataset.jsonl", "dropped.jsonl", "bad.jsonl", "funnel.json"


def gather(
    job: ShardJob, sources: Sequence[Source], shards: Sequence[Shard], out: Path, *, seed: int, progress: MakeProgress
) -> dict[str, Any]:
    """Write what `data_prep.curation.curate.Curation.finish` describes into `out`, and return counts."""
    steps = job.steps
    kept_file = job.scratch / "kept-0.jsonl" if steps.select else out / DATASET
    with ExitStack() as files:
        kept, dropped = (files.enter_context(open(path, "wb")) for path in (kept_file, out / DROPPED))
        bad = files.enter_context(open(out / BAD, "wb")) if steps.bad_rows == "set_aside" else None
        counter = files.enter_context(progress("gathering", len(shards), "shards"))
        gathering = _Gathering(job, shards, kept, dropped, bad)
        for source in sources:
            gathering.set_aside(read_jsonl(source.bad) if source.bad is not None else ())
        gathering.go_through(counter)
    funnel, tokens, figures = gathering.funnel, gathering.tokens, {}
    for number, name in enumerate(steps.selection_names if funnel.kept else ()):
        into = out / DATASET if number + 1 == len(steps.select) else job.scratch / f"kept-{number + 1}.jsonl"
        scratch = job.scratch / f"{number}-{name}"
        scratch.mkdir(exist_ok=True)
        reasons = steps.select[number].choose(kept_file, scratch, seed=seed, progress=progress)
        with open(out / DROPPED, "ab") as dropped, open(into, "wb") as kept:
            stay = [_select(line, reason, name, funnel, kept, dropped)
                    for line, reason in zip(_lines(kept_file), reasons, strict=True)]  # fmt: skip
        tokens = array("q", compress(tokens, stay))
        kept_file = into
        if found := steps.select[number].figures(scratch):
            figures[name] = found
    funnel.count_tokens(count for count in tokens if count >= 0)
    report = funnel.to_json(VERDICTS if steps.grader is not None else ())
    report |= {"selections": figures} if figures else {}
    write_json(out / FUNNEL, report)
    rows = report["steps"][0]["in"]
    if not rows:
        raise RequestError(", ".join(str(source.origin) for source in sources), "no rows to curate")
    if not funnel.kept:
        raise _nothing_left(funnel, rows, job)
    for file in out.iterdir():
        fsync_path(file)
    return _counts(report, funnel.kept)


def _counts(report: dict[str, Any], kept: int) -> dict[str, Any]:
    """What the funnel says, flat."""
    dropped = {step["step"]: sum(step["dropped"].values()) for step in report["steps"]}
    aside = {"set_aside": dropped.pop("read")} if "read" in dropped else {}
    dropped.pop("verify", None)
    steps = {f"dropped_{step}": count for step, count in dropped.items()}
    return {"rows_in": report["steps"][0]["in"], **aside, "rows": kept, **steps, **report["verdicts"]}


class _Gathering:
    """The pass over all shards: where the kept and the dropped rows go, and what is remembered of them."""

    def __init__(
        self, job: ShardJob, shards: Sequence[Shard], kept: IO[bytes], dropped: IO[bytes], bad: IO[bytes] | None
    ):
        self._job, self._shards, self._kept, self._dropped, self._bad = job, shards, kept, dropped, bad
        self.funnel = Funnel(job.steps.names)
        self.tokens = array("q")
        """Of each kept row, the tokens of its response; -1 where that is not known."""
        self._ids = _identities(job, shards)
        self._repeats = self._ids.repeats()
        self._repeat = next(self._repeats, None)
        self._taken = 0
        """Rows whose ids were looked at."""
        self._problems: set[bytes] = set()
        self._problem: Any = None
        self._seen = Deduplicator()
        self._rows = _Rows(job, shards)
        near = job.steps.near_duplicates
        self._near = SketchedDeduplicator(near, self._rows.read) if near is not None else None

    def go_through(self, progress: Progress) -> None:
        """All shards, in order."""
        lines = 0
        source: Source | None = None
        for shard in self._shards:
            if shard.source is not source:  # one file may be given twice
                source, lines = shard.source, 0
            self._rows.enter(shard)
            marks = read_jsonl(self._job.marks(shard))
            with open(self._job.rows(shard), "rb") as handle:
                while batch := list(islice(marks, BATCH_ROWS)):
                    if "lines" in batch[-1]:
                        added = batch.pop()["lines"]
                    self._batch([mark for mark in batch if "size" in mark], handle, shard, lines)
                    for mark in batch:
                        if "bad" in mark:
                            self._bad_row(shard, lines + mark["line"], mark["bad"], mark["problem"], mark["head"])
            lines += added
            progress.advance()

    def _batch(self, marks: list[Row], handle: IO[bytes], shard: Shard, lines: int) -> None:
        start = handle.tell()
        texts = [handle.read(mark["size"]) for mark in marks]
        dropped: list[tuple[str, str, Row] | None] = []
        for mark in marks:
            if self._is_new(mark, shard, lines + mark["line"]):
                self._check_problem(mark, shard, lines + mark["line"])
                self.funnel.enter(mark["verdict"])
                dropped.append(self._alone(mark))
            else:
                dropped.append(("read", "duplicated id", {}))
        if self._near is not None:
            places = array("q", [start])
            for text in texts:
                places.append(places[-1] + len(text))
            left = [place for place, said in enumerate(dropped) if said is None]
            found = self._near.find(
                _signatures([marks[place]["sketch"] for place in left]),
                [self._rows.number(places[place]) for place in left],
            )
            for place, duplicate in zip(left, found, strict=True):
                dropped[place] = _near_duplicate(duplicate)
        for mark, text, said in zip(marks, texts, dropped, strict=True):
            self._write(mark, text, said)

    def _alone(self, mark: Row) -> tuple[str, str, Row] | None:
        """The step that drops a row, before near-duplicates, with the reason and columns for dropped.jsonl."""
        if "dropped" in mark:
            step, reason = mark["dropped"]
            return step, reason, {}
        if "key" in mark:
            first = self._seen.first_of(bytes.fromhex(mark["key"]), mark["id"])
            if first is not None:
                return "deduplicate", "duplicate", {"duplicate_of": first}
        if "hits" in mark:
            return "decontaminate", "shares words with an evaluation problem", {"contamination": mark["hits"]}
        return None

    def _is_new(self, mark: Row, shard: Shard, line: int) -> bool:
        """Whether no other row has this id, or is dropped since it is that row again, from another file."""
        number, self._taken = self._taken, self._taken + 1
        repeat = self._repeat
        if repeat is None or repeat.number != number:
            return True
        self._repeat = next(self._repeats, None)
        if repeat.same:
            return True
        problem = f"the id {mark['id']!r} comes again: {self._ids.place(repeat.first)} has it already"
        if self._job.steps.bad_rows == "refuse":
            raise RequestError(shard.place(line), problem, "give each row an id of its own")
        self._bad_row(shard, line, "duplicated id", problem, "")
        return False

    def _check_problem(self, mark: Row, shard: Shard, line: int) -> None:
        """Raises RequestError where a row's problem was left before: what was annotated of it would be wrong."""
        problem = mark.get("problem")
        if problem is None or problem == self._problem:
            return
        self._problem, known = problem, len(self._problems)
        self._problems.add(blake2b(str(problem).encode(), digest_size=16).digest())
        if len(self._problems) == known:
            raise RequestError(
                shard.place(line),
                f"other traces of its problem {problem!r} stand further up, with other problems between",
                "sort the rows by `problem_id` before they are annotated",
            )

    def set_aside(self, rows: Iterable[Row]) -> None:
        """Count bad rows, as `bad.jsonl` tells them, and write them there."""
        for row in rows:
            if self._bad is not None:
                self._bad.write(jsonl_line(row).encode())
            self.funnel.enter()
            self.funnel.drop("read", row["reason"], f"{row['file']}:{row['line']}")

    def _bad_row(self, shard: Shard, line: int, kind: str, problem: str, head: str) -> None:
        place = {"file": shard.source.origin.name, "line": line}
        self.set_aside([{**place, "reason": kind, "problem": problem, "head": head}])

    def _write(self, mark: Row, text: bytes, said: tuple[str, str, Row] | None) -> None:
        if said is None:
            self._kept.write(text)
            tokens = mark["tokens"]
            self.tokens.append(tokens if isinstance(tokens, int) and tokens >= 0 else -1)
            return
        step, reason, columns = said
        if step == "read":
            return
        self.funnel.drop(step, reason, mark["id"])
        if "dropped" not in mark:
            text = jsonl_line({**json.loads(text), "dropped_by": step, "reason": reason, **columns}).encode()
        self._dropped.write(text)


def _identities(job: ShardJob, shards: Sequence[Shard]) -> Identities:
    """The ids of all rows, in their order, with what tells equal rows where these are dropped."""
    ids, lines = Identities(), 0
    source: Source | None = None
    for shard in shards:
        if shard.source is not source:  # one file may be given twice
            source, lines = shard.source, 0
            ids.enter(source.origin)
        added = 0
        for mark in read_jsonl(job.marks(shard)):
            if "size" in mark:
                ids.add(mark["id"], lines + mark["line"], bytes.fromhex(mark.get("key", "")))
            added = mark.get("lines", added)
        lines += added
    return ids


class _Rows:
    """The rows of all shards by number: where they begin, as if the shards' files were one."""

    def __init__(self, job: ShardJob, shards: Sequence[Shard]):
        self._job, self._shards = job, shards
        self._begins = array("q")
        self._open: tuple[int, IO[bytes]] | None = None

    def enter(self, shard: Shard) -> None:
        """Say that the numbers from here on are of this shard, the one after the last."""
        size = os.path.getsize(self._job.rows(self._shards[len(self._begins) - 1])) if self._begins else 0
        self._begins.append(self._begins[-1] + size if self._begins else 0)

    def number(self, position: int) -> int:
        """The number of the row that begins at a place of the shard's file."""
        return self._begins[-1] + position

    def read(self, number: int) -> Row:
        """A row again."""
        at = bisect_right(self._begins, number) - 1
        if self._open is None or self._open[0] != at:
            if self._open is not None:
                self._open[1].close()
            self._open = at, open(self._job.rows(self._shards[at]), "rb")  # noqa: SIM115 (closed by the next)
        handle = self._open[1]
        handle.seek(number - self._begins[at])
        found: Row = json.loads(handle.readline())
        return found


def _signatures(sketches: Sequence[str]) -> "Signatures":
    import numpy as np

    data = b"".join(map(base64.b64decode, sketches))
    return np.frombuffer(data, np.uint8).reshape(len(sketches), -1 if sketches else 0)


def _near_duplicate(found: Duplicate | None) -> tuple[str, str, Row] | None:
    if found is None:
        return None
    return "near_duplicates", "near-duplicate", {"duplicate_of": found.of, "similarity": found.similarity}


def _lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as handle:
        yield from handle


def _select(line: bytes, reason: str | None, step: str, funnel: Funnel, kept: IO[bytes], dropped: IO[bytes]) -> bool:
    """Write a row where a selection wants it; True where it is kept."""
    if reason is None:
        kept.write(line)
        return True
    row = json.loads(line)
    funnel.drop(step, reason, row["id"])
    dropped.write(jsonl_line({**row, "dropped_by": step, "reason": reason}).encode())
    return False


def _nothing_left(funnel: Funnel, rows: int, job: ShardJob) -> StageError:
    step, reason, count = funnel.worst
    hint = f"the step {step!r} dropped most, {count}, first of all for {reason!r}"
    decontamination = job.steps.decontaminate
    if step == "decontaminate" and decontamination is not None:
        hint += f"; if all prompts share an instruction of {decontamination.n} words or more, raise decontaminate.n"
    return StageError(f"curate: all {rows} traces were dropped, so the dataset would be empty; {hint}")
