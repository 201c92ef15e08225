"""Traces that others made, as the stage `traces` reads them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from data_prep.sources.problems import FileSource
from data_prep.sources.traces import FileTraces
from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl, write_jsonl
from recipes.stage import StageContext
from recipes.stages.traces import TracesStage

Row = dict[str, Any]


def write(tmp_path: Path, **options: Any) -> tuple[Row, list[Row]]:
    """Run the stage; returns its counts and the traces."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    stage = TracesStage.model_validate({"source": {"type": "files", **options}})
    counts = stage.run(StageContext("traces", 0, {}, out, tmp_path / "scratch", tmp_path / "progress.json"))
    return counts, list(read_jsonl(out / "traces.jsonl"))


def test_columns_are_mapped_and_problems_brought_together(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"content": "One?"}, {"content": "a"}], "solution": 1, "level": 3, "response": "other"},
        {"messages": [{"content": "Two?"}, {"content": "b"}], "solution": 2.5, "level": 4, "response": "other"},
        {"messages": [{"content": " one?"}, {"content": "c"}], "solution": "1", "level": 5, "response": "other"},
    ]
    pq.write_table(pa.Table.from_pylist([{**row, "solution": str(row["solution"])} for row in rows]),
                   tmp_path / "theirs.parquet")  # fmt: skip
    columns = {"prompt": "messages.0.content", "response": "messages.-1.content", "answer": "solution"}
    given = {"paths": [str(tmp_path / "theirs.parquet")], "columns": columns, "teacher": "R1"}
    counts, found = write(tmp_path, **given)
    assert counts == {"problems": 2, "samples": 3, "finished_None": 3}
    assert [row["response"] for row in found] == ["a", "c", "b"]
    assert [row["sample"] for row in found] == [0, 1, 0]
    assert found[0]["problem_id"] == found[1]["problem_id"] != found[2]["problem_id"]
    assert [row["id"] for row in found] == [f"{row['problem_id']}/{row['sample']}" for row in found]
    first = {name: found[0][name] for name in ("prompt", "answer", "teacher", "finish_reason", "level")}
    assert first == {"prompt": "One?", "answer": "1", "teacher": "R1", "finish_reason": None, "level": 3}
    assert found[0]["source_response"] == "other"
    # A problem has the id that the stage `problems` would give it.
    write_jsonl(tmp_path / "problems.jsonl", [{"prompt": "One?", "answer": "1"}, {"prompt": "Two?", "answer": "2"}])
    problems = FileSource(path=str(tmp_path / "problems.jsonl"), eval_count=1).make(0)
    assert {row["id"] for row in problems.train + problems.eval} == {row["problem_id"] for row in found}


def test_our_own_traces_come_back_as_they_were(tmp_path: Path) -> None:
    row = {"id": "p/1", "problem_id": "p", "sample": 0, "prompt": "q", "answer": "4", "response": "r",
           "finish_reason": "length", "prompt_tokens": 3, "completion_tokens": 5, "teacher": "t",
           "domain": "x"}  # fmt: skip
    write_jsonl(tmp_path / "traces.jsonl", [row])
    assert write(tmp_path, paths=[str(tmp_path / "traces.jsonl")])[1] == [row]


def test_bad_rows_are_refused_or_set_aside(tmp_path: Path) -> None:
    good = '{"prompt": "q", "answer": "1", "response": "r"}'
    bad = ['{"prompt": "q"', '{"prompt": "q", "answer": "1"}', '{"prompt": "q", "answer": null, "response": "r"}', "7"]
    path = tmp_path / "traces.jsonl"
    path.write_text("\n".join([good, "", *bad, good]) + "\n")
    with pytest.raises(RequestError, match=r"traces\.jsonl:3: not JSON at column 15"):
        write(tmp_path, paths=[str(path)])
    counts, found = write(tmp_path, paths=[str(path)], bad_rows="set_aside")
    assert counts["set_aside"] == 4
    assert len(found) == counts["samples"] == 2
    aside = list(read_jsonl(tmp_path / "out" / "bad.jsonl"))
    assert [(row["line"], row["reason"]) for row in aside] == [
        (3, "not JSON"),
        (4, "no column 'response'"),
        (5, "no column 'answer'"),
        (6, "no JSON object"),
    ]
    assert write(tmp_path, paths=[str(path)], bad_rows="set_aside", columns={"answer": None})[0]["samples"] == 3


def test_an_id_comes_once_in_all_files(tmp_path: Path) -> None:
    rows = [{"id": f"r{number}", "prompt": f"q{number}", "answer": "1", "response": "r"} for number in range(4)]
    write_jsonl(tmp_path / "a.jsonl", rows[:3])
    write_jsonl(tmp_path / "b.jsonl", [rows[3], {**rows[1], "response": "other"}, rows[1]])
    paths = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    with pytest.raises(RequestError, match=rf"^{paths[1]}:2: the id 'r1' comes again: {paths[0]}:2 has it already; "):
        write(tmp_path, paths=paths)
    counts, found = write(tmp_path, paths=paths, bad_rows="set_aside")
    assert (counts["set_aside"], counts["samples"]) == (2, 4)
    assert [row["id"] for row in found] == ["r0", "r1", "r2", "r3"]
    aside = list(read_jsonl(tmp_path / "out" / "bad.jsonl"))
    assert [(row["file"], row["line"], row["reason"]) for row in aside] == [
        ("b.jsonl", 2, "duplicated id"),
        ("b.jsonl", 3, "duplicated id"),
    ]


def test_what_a_source_asks_for(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"'answers' is no column of a trace; did you mean 'answer'\?"):
        FileTraces(paths=["x"], columns={"answers": "a"})
    source = FileTraces(paths=[str(tmp_path / "a.jsonl"), str(tmp_path / "b.parquet"), "hub:acme/sums"])
    assert source.needs == ("pyarrow", "datasets")
    assert source.external_files == (tmp_path / "a.jsonl", tmp_path / "b.parquet")
    with pytest.raises(RequestError, match="no such file"):
        write(tmp_path, paths=[str(tmp_path / "a.jsonl")])
