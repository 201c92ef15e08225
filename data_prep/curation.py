"""Curation: traces are verified, filtered, deduplicated and decontaminated, and every dropped row says why.

The stage `curate` calls it. Verification, the costly part, is kept in shards, so that a kill loses one shard at
most; the rest is done in one pass. What comes out depends on neither the workers nor the kills.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from data_prep.decontamination import Decontamination, EvaluationIndex
from data_prep.deduplication import Deduplicator, NearDeduplicator, NearDuplicates
from data_prep.filters import Filter
from data_prep.funnel import Funnel
from data_prep.grading import VERDICTS, BaseGrader, grade_rows
from reasonforge.errors import RequestError, StageError
from reasonforge.files import jsonl_line, read_jsonl, write_json, write_jsonl
from reasonforge.progress import Progress

SHARD_ROWS = 500
"""Rows verified between two saves."""
BATCH_ROWS = 250
"""Rows that are selected at a time; what comes out does not depend on it."""

Row = dict[str, Any]
Said = tuple[str, Row] | None
"""What a step says of a row: None to keep it, or the reason and columns for dropped.jsonl."""
Step = tuple[str, Callable[[list[Row]], list[Said]]]
"""A step's name, and what it says of each of some rows."""


def verify(traces: Path, grader: BaseGrader, *, scratch: Path, workers: int, progress: Progress) -> list[Path]:
    """Grade every trace; the graded rows come in shards, jsonl files in `scratch`, in the order of the traces.

    Shards that an earlier attempt finished are kept: call it again with the same traces and grader only.
    """
    shards: list[Path] = []
    while (path := scratch / f"graded-{len(shards):06d}.jsonl").exists():
        shards.append(path)
    done = len(shards) * SHARD_ROWS
    progress.resume(min(done, progress.total))
    rows = islice(_checked(traces), done, None)
    graded = grade_rows(rows, grader, workers, progress)
    while batch := list(islice(graded, SHARD_ROWS)):
        path = scratch / f"graded-{len(shards):06d}.jsonl"
        write_jsonl(path, batch)
        shards.append(path)
    return shards


def select(
    graded: Iterable[Row],
    filters: Sequence[Filter],
    *,
    deduplicate: bool,
    decontamination: Decontamination | None,
    evaluation: Iterable[Row],
    out: Path,
    near_duplicates: NearDuplicates | None = None,
) -> dict[str, Any]:
    """Pass graded rows through the filters, deduplication, decontamination and near-duplicates, in this order.

    Writes `dataset.jsonl`, `dropped.jsonl` (each row with `dropped_by` and `reason`; a duplicate also with
    `duplicate_of`, a near-duplicate with its `similarity` too, a contaminated row with `contamination`, see
    `EvaluationIndex.hits`, where a hit in another column than the prompt has its `column`) and `funnel.json` into
    `out`, and returns counts. Rows stream through; hashes and ids of kept rows are held.

    Raises StageError, naming the step that dropped most, where no row is left.
    """
    near = NearDeduplicator(near_duplicates, out) if near_duplicates is not None else None
    steps = list(_steps(filters, deduplicate, near, decontamination, evaluation))
    funnel = Funnel(["verify", *(name for name, _ in steps)])

    def kept(drops: TextIO) -> Iterator[Row]:
        rows = iter(graded)
        while batch := list(islice(rows, BATCH_ROWS)):
            for row, dropped in zip(batch, _judged(batch, steps), strict=True):
                funnel.enter(row.get("verdict", ""))
                if dropped is None:
                    yield row
                    continue
                name, reason, columns = dropped
                funnel.drop(name, reason, row["id"])
                drops.write(jsonl_line({**row, "dropped_by": name, "reason": reason, **columns}))

    with open(out / "dropped.jsonl", "w", encoding="utf-8") as drops:
        write_jsonl(out / "dataset.jsonl", kept(drops))
    report = funnel.to_json(VERDICTS)
    write_json(out / "funnel.json", report)
    if not funnel.kept:
        raise _nothing_left(funnel, report["steps"][0]["in"], decontamination)
    counts = {f"dropped_{step['step']}": sum(step["dropped"].values()) for step in report["steps"][1:]}
    return {"rows_in": report["steps"][0]["in"], "rows": funnel.kept, **counts, **report["verdicts"]}


def _checked(traces: Path) -> Iterator[Row]:
    """The traces, each with the columns that curation needs. Raises RequestError naming the row that lacks one."""
    needed = ("id", "prompt", "answer", "response")
    for number, row in enumerate(read_jsonl(traces), start=1):
        for column in needed:
            if not isinstance(row.get(column), str):
                raise RequestError(
                    f"{traces}: row {number}",
                    f"`{column}` is {'missing' if column not in row else 'no text'}",
                    f"a trace has the texts {', '.join(needed)}",
                )
        yield row


def _judged(batch: list[Row], steps: Sequence[Step]) -> list[tuple[str, str, Row] | None]:
    """Of each row, the step that drops it with what it says; None where it is kept."""
    dropped: list[tuple[str, str, Row] | None] = [None] * len(batch)
    left = list(range(len(batch)))
    for name, judge in steps:
        for place, said in zip(left, judge([batch[place] for place in left]), strict=True):
            if said is not None:
                dropped[place] = (name, *said)
        left = [place for place in left if dropped[place] is None]
    return dropped


def _steps(
    filters: Sequence[Filter],
    deduplicate: bool,
    near: NearDeduplicator | None,
    decontamination: Decontamination | None,
    evaluation: Iterable[Row],
) -> Iterator[Step]:
    names: set[str] = set()
    for one in filters:
        kind = str(getattr(one, "type", type(one).__name__))
        name = kind
        while name in names:
            name = f"{kind}-{int(name[len(kind) + 1 :] or 1) + 1}"
        names.add(name)
        yield name, _filter_step(one)
    if deduplicate:
        yield "deduplicate", _duplicate_step(Deduplicator())
    if decontamination is not None:
        yield "decontaminate", _contamination_step(EvaluationIndex(evaluation, decontamination), decontamination)
    if near is not None:  # last, so that what a near-duplicate duplicates is in the dataset
        yield "near_duplicates", _near_duplicate_step(near)


def _filter_step(one: Filter) -> Callable[[list[Row]], list[Said]]:
    def judge(rows: list[Row]) -> list[Said]:
        reasons = [one.reason(row) for row in rows]
        return [None if reason is None else (reason, {}) for reason in reasons]

    return judge


def _duplicate_step(seen: Deduplicator) -> Callable[[list[Row]], list[Said]]:
    def judge(rows: list[Row]) -> list[Said]:
        firsts = [seen.first(row) for row in rows]
        return [None if first is None else ("duplicate", {"duplicate_of": first}) for first in firsts]

    return judge


def _near_duplicate_step(near: NearDeduplicator) -> Callable[[list[Row]], list[Said]]:
    def judge(rows: list[Row]) -> list[Said]:
        return [
            None if one is None else ("near-duplicate", {"duplicate_of": one.of, "similarity": one.similarity})
            for one in near.find(rows)
        ]

    return judge


def _contamination_step(index: EvaluationIndex, config: Decontamination) -> Callable[[list[Row]], list[Said]]:
    def judge(rows: list[Row]) -> list[Said]:
        hits: list[list[Row]] = [[] for _ in rows]
        for column in config.columns:
            named = {} if column == "prompt" else {"column": column}
            for row_hits, found in zip(hits, index.find([row[column] for row in rows]), strict=True):
                row_hits.extend({**hit, **named} for hit in found)
        return [("shares words with an evaluation problem", {"contamination": found}) if found else None
                for found in hits]  # fmt: skip

    return judge


def _nothing_left(funnel: Funnel, rows: int, decontamination: Decontamination | None) -> StageError:
    if not rows:
        return StageError("curate: there are no traces to curate, so the dataset would be empty")
    step, reason, count = funnel.worst
    hint = f"the step {step!r} dropped most, {count}, first of all for {reason!r}"
    if step == "decontaminate" and decontamination is not None:
        hint += f"; if all prompts share an instruction of {decontamination.n} words or more, raise decontaminate.n"
    return StageError(f"curate: all {rows} traces were dropped, so the dataset would be empty; {hint}")
