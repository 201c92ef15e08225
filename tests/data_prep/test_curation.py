import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import killing
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.curation import select, verify
from data_prep.decontamination import Decontamination
from data_prep.filters import CorrectFilter, Filter, LengthFilter, ThinkingFilter, TruncationFilter
from data_prep.grading import ExactGrader
from reasonforge.artifacts import Artifact
from reasonforge.config import key_config
from reasonforge.errors import RequestError, StageError
from reasonforge.files import read_json, read_jsonl, write_jsonl
from reasonforge.progress import Progress
from recipes.stage import StageContext
from recipes.stages.curate import CurateStage

Row = dict[str, Any]
FILES = ("dataset.jsonl", "dropped.jsonl", "funnel.json")
EVALUATION = [{"id": "eval-0", "prompt": "Start: 1 a+1", "answer": "2"}]


def trace(number: int, response: str, answer: str = "4", **columns: object) -> Row:
    row = {"id": f"p{number}/0", "problem_id": f"p{number}", "sample": 0, "prompt": f"problem {number}"}
    return {**row, "answer": answer, "response": response, "finish_reason": "stop", "level": "easy", **columns}


def curate(directory: Path, traces: Sequence[Row], evaluation: Sequence[Row] = EVALUATION, **options: object) -> Row:
    """Run the stage as the launcher does, but for the receipt; returns its counts."""
    out, scratch, name = directory / "out", directory / "scratch", str(options.get("workers", ""))
    for path in (out, scratch):
        path.mkdir(parents=True, exist_ok=True)
    write_jsonl(directory / "traces" / "traces.jsonl", traces)
    write_jsonl(directory / "problems" / "eval.jsonl", evaluation)
    stage = CurateStage.model_validate(
        {"inputs": {"traces": "t", "problems": "p"}, "grader": {"type": "exact"}, **options}
    )
    inputs = {kind: Artifact(directory / kind, None) for kind in ("traces", "problems")}  # type: ignore[arg-type]
    assert [(ref.name, ref.kind) for ref in stage.input_refs()] == [("traces", "traces"), ("problems", "problems")]
    return stage.run(StageContext("curate", 0, inputs, out, scratch, directory / f"progress{name}.json"))


GOOD = "<think>\n2 and 2\n</think>\n\\boxed{4}"


def mixed() -> list[Row]:
    return [
        trace(0, GOOD),
        trace(1, "<think>\n2 and 2\n</think>\n\\boxed{5}"),
        trace(2, "<think>\n\\boxed{4}"),
        trace(3, GOOD, answer=" "),
        trace(4, GOOD, finish_reason="length"),
        trace(5, "<think>a</think><think>b</think>\\boxed{4}"),
        trace(6, GOOD + " and again" * 40),
        trace(0, GOOD, id="p0/1", sample=1),
        trace(8, GOOD, prompt="start: 1\na+1"),
        trace(9, "\\boxed{4}", prompt="another"),
    ]


def test_every_row_is_kept_or_dropped_with_its_reason(tmp_path: Path) -> None:
    counts = curate(tmp_path, mixed())
    kept, dropped = (list(read_jsonl(tmp_path / "out" / name)) for name in FILES[:2])
    assert [row["id"] for row in kept] == ["p0/0", "p9/0"]
    assert list(kept[0]) == [*mixed()[0], "verdict", "extracted"]
    assert (kept[0]["verdict"], kept[0]["extracted"]) == ("correct", "4")
    assert [(row["id"], row["dropped_by"], row["reason"]) for row in dropped] == [
        ("p1/0", "correct", "wrong"),
        ("p2/0", "correct", "unparseable_answer"),
        ("p3/0", "correct", "unparseable_gold"),
        ("p4/0", "truncated", "finish_reason length"),
        ("p5/0", "thinking", "repeated"),
        ("p6/0", "repetition", "ends in a loop"),
        ("p0/1", "deduplicate", "duplicate"),
        ("p8/0", "decontaminate", "shares words with an evaluation problem"),
    ]
    assert dropped[6]["duplicate_of"] == "p0/0"
    assert dropped[7]["contamination"] == [{"problem_id": "eval-0", "words": [0, 3], "text": "start: 1 a+1"}]
    funnel = read_json(tmp_path / "out" / "funnel.json")
    steps = ["verify", "correct", "truncated", "thinking", "repetition", "deduplicate", "decontaminate"]
    assert [step["step"] for step in funnel["steps"]] == steps
    assert [step["out"] for step in funnel["steps"]] == [10, 7, 6, 5, 4, 3, 2]
    assert funnel["verdicts"] == {
        "correct": 7, "wrong": 1, "unparseable_gold": 1, "unparseable_answer": 1, "timeout": 0
    }  # fmt: skip
    assert funnel["examples"]["correct"] == ["p1/0", "p2/0", "p3/0"]
    assert (counts["rows_in"], counts["rows"], counts["dropped_correct"]) == (10, 2, 3)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["4", "5", ""]), st.booleans()), max_size=15),
    st.permutations([CorrectFilter(), TruncationFilter(), ThinkingFilter(required=True), LengthFilter(min=3)]),
)
def test_the_funnel_adds_up(tmp_path: Path, drawn: list[tuple[str, str, bool]], filters: list[Filter]) -> None:
    rows = [
        {**trace(index, f"{'<think>x</think> ' * thinks}so \\boxed{{{answer}}}"), "prompt": prompt,
         "verdict": "correct" if answer == "4" else "wrong", "finish_reason": "length" if index % 7 == 6 else "stop"}
        for index, (prompt, answer, thinks) in enumerate(drawn)
    ]  # fmt: skip
    try:
        select(
            rows,
            filters,
            deduplicate=True,
            decontamination=Decontamination(),
            evaluation=[{"id": "e", "prompt": "b"}],
            out=tmp_path,
        )
    except StageError:
        assert not list(read_jsonl(tmp_path / "dataset.jsonl"))
    kept, dropped = (list(read_jsonl(tmp_path / name)) for name in FILES[:2])
    funnel = read_json(tmp_path / "funnel.json")
    assert sorted(row["id"] for row in kept + dropped) == sorted(row["id"] for row in rows)
    expected = len(rows)
    for step in funnel["steps"]:
        assert step["in"] == expected
        assert step["out"] == step["in"] - sum(step["dropped"].values())
        here = Counter(row["reason"] for row in dropped if row["dropped_by"] == step["step"])
        assert here == step["dropped"]
        expected = step["out"]
    assert expected == len(kept)
    assert sum(funnel["verdicts"].values()) == len(rows)


def test_near_duplicates_and_recited_problems_are_dropped_with_what_they_match(tmp_path: Path) -> None:
    recited = "Find the number of ordered pairs (a, b) of positive integers with a + b = 1000"
    many = " ".join(f"step {number}" for number in range(300))
    rows = [
        trace(0, f"<think>{many}</think>\\boxed{{4}}"),
        trace(0, f"<think>{many} so</think>\\boxed{{4}}", id="p0/1"),
        trace(2, f"<think>{recited} hm {many}</think>\\boxed{{4}}"),
        trace(3, f"<think>{many} again. {recited}? {many}</think>\\boxed{{4}}", prompt=recited),
    ]
    evaluation = [{"id": "eval-0", "prompt": recited, "answer": "4"}]
    columns = {"columns": ["prompt", "response"]}
    curate(tmp_path, rows, evaluation, near_duplicates={"threshold": 0.9}, decontaminate=columns, filters=[])
    assert [row["id"] for row in read_jsonl(tmp_path / "out" / "dataset.jsonl")] == ["p0/0"]
    near, second, third = sorted(read_jsonl(tmp_path / "out" / "dropped.jsonl"), key=lambda row: str(row["id"]))
    assert (near["dropped_by"], near["reason"], near["duplicate_of"]) == ("near_duplicates", "near-duplicate", "p0/0")
    assert 0.9 <= near["similarity"] < 1
    (hit,) = second["contamination"]  # its first word is one with the tag before it
    assert (hit["words"], hit["column"]) == ([1, 17], "response")
    assert [hit.get("column") for hit in third["contamination"]] == [None, "response"]


def test_the_batch_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for batch in (1, 3, 250):
        monkeypatch.setattr("data_prep.curation.BATCH_ROWS", batch)
        curate(tmp_path / str(batch), mixed(), near_duplicates={})
    for name in FILES:
        whole = (tmp_path / "250" / "out" / name).read_bytes()
        assert all((tmp_path / batch / "out" / name).read_bytes() == whole for batch in ("1", "3"))


def test_a_filter_that_comes_twice_has_a_name_of_its_own(tmp_path: Path) -> None:
    lengths = [{"type": "length", "max": 100}, {"type": "length", "min": 5}, {"type": "length", "min": 2}]
    curate(tmp_path, mixed(), filters=lengths, deduplicate=False, decontaminate=None)
    funnel = read_json(tmp_path / "out" / "funnel.json")
    assert [step["step"] for step in funnel["steps"]] == ["verify", "length", "length-2", "length-3"]
    assert [step["out"] for step in funnel["steps"]] == [10, 10, 7, 7]


@pytest.mark.parametrize(
    ("traces", "message"),
    [
        ([], "no traces to curate"),
        ([trace(n, "\\boxed{5}") for n in range(3)], "all 3 traces were dropped.*'correct' dropped most, 3.*'wrong'"),
        ([trace(n, GOOD, prompt="Start: 1 a+1") for n in range(2)], "'deduplicate' dropped most, 1"),
        ([trace(n, GOOD + str(n), prompt="Start: 1 a+1") for n in range(2)], "'decontaminate'.*raise decontaminate.n"),
    ],
)
def test_an_empty_dataset_is_an_error_of_one_line(tmp_path: Path, traces: list[Row], message: str) -> None:
    with pytest.raises(StageError, match=message) as error:
        curate(tmp_path, traces)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("column", ["id", "prompt", "answer", "response"])
@pytest.mark.parametrize("value", [None, 4])
def test_a_row_without_its_columns_is_refused(tmp_path: Path, column: str, value: object) -> None:
    bad = trace(1, GOOD)
    if value is None:
        del bad[column]
    else:
        bad[column] = value
    with pytest.raises(RequestError, match=f"traces.jsonl: row 2: `{column}` is"):
        curate(tmp_path, [trace(0, GOOD), bad])


def test_a_corrupt_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps(trace(0, GOOD)) + '\n{"id": "p1/0", "prom')
    with pytest.raises(RequestError, match=r"traces.jsonl:2: not JSON"):
        verify(path, ExactGrader(), scratch=tmp_path, workers=1, progress=Progress("grading", 2, "traces"))


def test_workers_are_not_part_of_the_stage_key() -> None:
    wired = {"inputs": {"traces": "t", "problems": "p"}, "grader": {"type": "exact"}}
    one, two = (CurateStage.model_validate({**wired, "workers": workers}) for workers in (1, 2))
    assert key_config(one) == key_config(two)
    assert CurateStage.model_validate({**wired, "grader": {"type": "math_verify"}}).needs == ("math_verify",)


DRIVER = """
import sys
from pathlib import Path

import data_prep.curation
from reasonforge.artifacts import Artifact
from recipes.stage import StageContext
from recipes.stages.curate import CurateStage

if __name__ == "__main__":
    inputs, out, scratch = map(Path, sys.argv[1:4])
    data_prep.curation.SHARD_ROWS = 5
    stage = CurateStage.model_validate({
        "inputs": {"traces": "t", "problems": "p"}, "grader": {"type": "math_verify", "timeout_s": 1.0},
        "workers": int(sys.argv[4]),
    })
    artifacts = {kind: Artifact(inputs, None) for kind in ("traces", "problems")}
    stage.run(StageContext("curate", 0, artifacts, out, scratch, out.parent / "progress.json"))
"""


def test_kills_and_workers_leave_no_trace(tmp_path: Path) -> None:
    """Two SIGKILLs at different shards, then to the end; against one undisturbed run with other workers."""
    rows = [
        trace(n, f"<think>{n}</think> \\boxed{{{n}(x+1)}}", answer=f"{n}x+{n + n % 2}")  # right where n is even
        for n in range(40)
    ]
    # The last answer takes its whole second, so that no kill comes too late.
    rows[39] = {**rows[39], "response": r"\boxed{9^{9^{9}}}", "answer": r"\sqrt{2}"}
    write_jsonl(tmp_path / "traces.jsonl", rows)
    write_jsonl(tmp_path / "eval.jsonl", EVALUATION)
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)

    def attempt(name: str, workers: int, kill_at: str | None = None) -> bool:
        out, scratch = tmp_path / name / "out", tmp_path / name / "scratch"
        for path in (out, scratch):
            path.mkdir(parents=True, exist_ok=True)
        for path in out.iterdir():
            path.unlink()
        return killing.run(script, tmp_path, out, scratch, workers, kill_at=scratch / kill_at if kill_at else None)

    shards = tmp_path / "killed" / "scratch"
    assert attempt("killed", 2, "graded-000000.jsonl")
    first = (shards / "graded-000000.jsonl").stat().st_mtime_ns
    assert attempt("killed", 1, "graded-000005.jsonl")
    assert not attempt("killed", 2)
    assert not attempt("whole", 1)
    assert (shards / "graded-000000.jsonl").stat().st_mtime_ns == first
    for name in FILES:
        assert (tmp_path / "killed" / "out" / name).read_bytes() == (tmp_path / "whole" / "out" / name).read_bytes()
    verdicts = read_json(tmp_path / "whole" / "out" / "funnel.json")["verdicts"]
    assert verdicts == {"correct": 20, "wrong": 19, "unparseable_gold": 0, "unparseable_answer": 0, "timeout": 1}
