import json
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.curation.curate import Curation
from data_prep.curation.steps import Steps
from data_prep.filters import CorrectFilter, Filter, LengthFilter, ThinkingFilter, TruncationFilter
from data_prep.grading import ExactGrader
from data_prep.overlap.decontamination import Benchmark, Decontamination
from reasonforge.artifacts import Artifact, ArtifactKind, Cost, Receipt
from reasonforge.config import key_config
from reasonforge.errors import ReasonforgeError, RequestError, StageError
from reasonforge.files import jsonl_line, read_json, read_jsonl, write_jsonl
from reasonforge.progress import Progress
from recipes.stage import StageContext
from recipes.stages.curate import CurateStage

Row = dict[str, Any]
FILES = ("dataset.jsonl", "dropped.jsonl", "funnel.json", "README.md")
EVALUATION = [{"id": "eval-0", "prompt": "Start: 1 a+1", "answer": "2"}]


def trace(number: int, response: str, answer: str = "4", **columns: object) -> Row:
    row = {"id": f"p{number}/0", "problem_id": f"p{number}", "sample": 0, "prompt": f"problem {number}"}
    return {**row, "answer": answer, "response": response, "finish_reason": "stop", "level": "easy", **columns}


def receipt(kind: ArtifactKind) -> Receipt:
    """Of an artifact that nobody made."""
    cost = Cost(started_at="", wall_s=0, cpu_s=0, peak_rss_bytes=0, attempt=1)
    return Receipt(stage=kind, stage_type=kind, kind=kind, key="", config={"made": "by hand"}, inputs={}, files={},
                   digest="0" * 64, counts={}, environment={}, cost=cost, lineage={})  # fmt: skip


def curate(
    directory: Path, traces: Sequence[Row] | bytes, evaluation: Sequence[Row] = EVALUATION, **options: object
) -> Row:
    """Run the stage as the launcher does, but for the receipt; returns its counts."""
    out, scratch, name = directory / "out", directory / "scratch", str(options.get("workers", ""))
    for path in (out, scratch):
        path.mkdir(parents=True, exist_ok=True)
    (directory / "traces").mkdir(exist_ok=True)
    text = traces if isinstance(traces, bytes) else "".join(map(jsonl_line, traces)).encode()
    (directory / "traces" / "traces.jsonl").write_bytes(text)
    write_jsonl(directory / "problems" / "eval.jsonl", evaluation)
    stage = CurateStage.model_validate(
        {"inputs": {"traces": "t", "problems": "p"}, "grader": {"type": "exact"}, **options}
    )
    inputs = {kind: Artifact(directory / kind, receipt(kind)) for kind in ("traces", "problems")}
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
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_jsonl(tmp_path / "eval.jsonl", [{"id": "e", "prompt": "b"}])
    shutil.rmtree(tmp_path / "scratch", ignore_errors=True)
    steps = Steps(filters=filters, deduplicate=True, decontaminate=Decontamination())
    benchmarks = [Benchmark(path=str(tmp_path / "eval.jsonl"))]
    curation = Curation([tmp_path / "rows.jsonl"], steps, tmp_path / "scratch", benchmarks)
    try:
        curation.work(workers=1, progress=Progress)
        curation.finish(tmp_path, seed=0, progress=Progress)
    except ReasonforgeError:
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
        monkeypatch.setattr("data_prep.curation.shard_work.BATCH_ROWS", batch)
        monkeypatch.setattr("data_prep.curation.gathering.BATCH_ROWS", batch)
        curate(tmp_path / str(batch), mixed(), near_duplicates={})
    for name in FILES:
        whole = (tmp_path / "250" / "out" / name).read_bytes()
        assert all((tmp_path / batch / "out" / name).read_bytes() == whole for batch in ("1", "3"))


@pytest.mark.parametrize("size", [90, 300, 1000, 10**6])
def test_the_shards_leave_no_trace(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Problems of one to seven traces, and lines that are none; a problem's pass rate counts all its traces."""
    draw = random.Random(0)
    rows = [
        trace(number, GOOD.replace("4", draw.choice("45")) + "!" * draw.randint(0, 50), id=f"p{number}/{sample}")
        for number in range(40)
        for sample in range(draw.randint(1, 7))
    ]
    rows[3]["problem_id"] = rows[4]["problem_id"] = None
    options = {
        "annotate": [{"type": "difficulty", "min_traces": 1}],
        "filters": [],
        "near_duplicates": {},
        "bad_rows": "set_aside",
    }
    monkeypatch.setattr("data_prep.curation.curate.SHARD_BYTES", size)
    write_jsonl(tmp_path / "traces" / "traces.jsonl", rows)
    lines = (tmp_path / "traces" / "traces.jsonl").read_bytes().split(b"\n")
    for place in (0, 9, 10, 50, 51, 52, 80):
        lines.insert(place, draw.choice([b"", b"no row", b"{}", b'{"id": 4}']))
    text = b"\n".join(lines)
    counts = curate(tmp_path, text, workers=1, **options)
    assert counts["set_aside"] > 2
    kept = [*read_jsonl(tmp_path / "out" / "dataset.jsonl"), *read_jsonl(tmp_path / "out" / "dropped.jsonl")]
    for problem in {row["problem_id"] for row in rows} - {None}:
        verdicts = [row["verdict"] == "correct" for row in kept if row["problem_id"] == problem]
        rates = {round(row["pass_rate"], 3) for row in kept if row["problem_id"] == problem}
        assert rates == {round(sum(verdicts) / len(verdicts), 3)}
    monkeypatch.setattr("data_prep.curation.curate.SHARD_BYTES", 10**9)
    curate(tmp_path / "whole", text, workers=1, **options)
    for name in (*FILES, "bad.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / "out" / name).read_bytes()


def test_traces_of_a_problem_that_stand_apart_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.curation.curate.SHARD_BYTES", 100)
    rows = [trace(number, GOOD, id=f"t{place}") for place, number in enumerate([0, 0, 1, 0])]
    with pytest.raises(RequestError, match=r"traces.jsonl:4: other traces of its problem 'p0' stand further up"):
        curate(tmp_path, rows, annotate=[{"type": "difficulty"}])


def test_further_benchmarks(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "aime.jsonl", [{"id": 7, "question": "problem 3"}])
    against = {"against": [{"path": str(tmp_path / "aime.jsonl"), "column": "question"}]}
    curate(tmp_path, [trace(number, GOOD) for number in range(5)], decontaminate=against)
    (dropped,) = read_jsonl(tmp_path / "out" / "dropped.jsonl")
    assert dropped["contamination"] == [
        {"problem_id": "7", "benchmark": "aime.jsonl", "words": [0, 2], "text": "problem 3"}
    ]
    stage = CurateStage.model_validate({"inputs": {"traces": "t", "problems": "p"}, "grader": {"type": "exact"},
                                        "decontaminate": against})  # fmt: skip
    assert stage.external_files == (tmp_path / "aime.jsonl",)


def test_a_selection_comes_last(tmp_path: Path) -> None:
    rows = [trace(number // 2, GOOD + " so" * (number % 2), id=f"t{number}", completion_tokens=10 + number)
            for number in range(6)]  # fmt: skip
    counts = curate(tmp_path, rows, select=[{"type": "shortest_correct"}])
    assert [row["id"] for row in read_jsonl(tmp_path / "out" / "dataset.jsonl")] == ["t0", "t2", "t4"]
    assert counts["dropped_select-shortest_correct"] == 3
    funnel = read_json(tmp_path / "out" / "funnel.json")
    assert (funnel["steps"][-1]["step"], funnel["steps"][-1]["out"]) == ("select-shortest_correct", 3)
    assert funnel["completion_tokens"] == {"rows": 3, "total": 36, "longest": 14, "edges": [8, 16], "counts": [3]}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| select-shortest_correct | 6 | 3 |" in card


def test_a_filter_that_comes_twice_has_a_name_of_its_own(tmp_path: Path) -> None:
    lengths = [{"type": "length", "max": 100}, {"type": "length", "min": 5}, {"type": "length", "min": 2}]
    curate(tmp_path, mixed(), filters=lengths, deduplicate=False, decontaminate=None)
    funnel = read_json(tmp_path / "out" / "funnel.json")
    assert [step["step"] for step in funnel["steps"]] == ["verify", "length", "length-2", "length-3"]
    assert [step["out"] for step in funnel["steps"]] == [10, 10, 7, 7]


@pytest.mark.parametrize(
    ("traces", "message"),
    [
        ([trace(n, "\\boxed{5}") for n in range(3)], "all 3 traces were dropped.*'correct' dropped most, 3.*'wrong'"),
        ([trace(n, GOOD, prompt="Start: 1 a+1") for n in range(2)], "'deduplicate' dropped most, 1"),
        ([trace(n, GOOD + str(n), prompt="Start: 1 a+1") for n in range(2)], "'decontaminate'.*raise decontaminate.n"),
    ],
)
def test_an_empty_dataset_is_an_error_of_one_line(tmp_path: Path, traces: list[Row], message: str) -> None:
    with pytest.raises(StageError, match=message) as error:
        curate(tmp_path, traces)
    assert "\n" not in str(error.value)


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"traces\.jsonl: no rows to curate$"):
        curate(tmp_path, [])


@pytest.mark.parametrize("column", ["id", "prompt", "answer", "response"])
@pytest.mark.parametrize("value", [None, 4])
def test_a_row_without_its_columns_is_refused(tmp_path: Path, column: str, value: object) -> None:
    bad = trace(1, GOOD)
    if value is None:
        del bad[column]
    else:
        bad[column] = value
    with pytest.raises(RequestError, match=rf"traces.jsonl:2: (no column '{column}'|'{column}' is no text)"):
        curate(tmp_path, [trace(0, GOOD), bad])


def test_a_corrupt_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps(trace(0, GOOD)) + '\n{"id": "p1/0", "prom')
    with pytest.raises(RequestError, match=r"traces.jsonl:2: not JSON"):
        Curation([path], Steps(grader=ExactGrader()), tmp_path / "shards").work(workers=1, progress=Progress)


def test_workers_are_not_part_of_the_stage_key() -> None:
    wired = {"inputs": {"traces": "t", "problems": "p"}, "grader": {"type": "exact"}}
    one, two = (CurateStage.model_validate({**wired, "workers": workers}) for workers in (1, 2))
    assert key_config(one) == key_config(two)
    assert CurateStage.model_validate({**wired, "grader": {"type": "math_verify"}}).needs == ("math_verify", "numpy")
