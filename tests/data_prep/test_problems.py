import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from data_prep.sources.problems import FileSource, RunningSumSource, Source, normalise
from data_prep.sources.running_sum import count_distinct, parse
from reasonforge.errors import RequestError


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def numbered(count: int, **extra: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n), **extra} for n in range(count)]


def error(source: FileSource) -> str:
    with pytest.raises(RequestError) as caught:
        source.make(0)
    text = str(caught.value)
    assert "\n" not in text
    return text


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 60), st.integers(1, 60), st.sampled_from([(1, 1), (1, 3), (3, 6)]))
def test_running_sums_are_distinct_in_and_between_splits(
    seed: int, train: int, evaluation: int, terms: tuple[int, int]
) -> None:
    source = RunningSumSource(train=train, eval=evaluation, min_terms=terms[0], max_terms=terms[1])
    found = source.make(seed)
    assert (len(found.train), len(found.eval)) == (train, evaluation)
    prompts = [normalise(row["prompt"]) for row in found.train + found.eval]
    assert len(set(prompts)) == train + evaluation
    assert len({row["id"] for row in found.train + found.eval}) == train + evaluation
    for row in found.train + found.eval:
        problem = parse(row["prompt"])
        assert problem is not None
        assert row["answer"] == str(problem.answer)
        assert terms[0] <= len(problem.operands) <= terms[1]
    assert found == source.make(seed)


def test_seeds_give_other_problems_and_train_leaves_eval_alone() -> None:
    small, large = RunningSumSource(train=10, eval=20), RunningSumSource(train=500, eval=20)
    assert small.make(0).eval == large.make(0).eval
    assert small.make(0).eval != small.make(1).eval
    assert small.make(0).train != small.make(1).train


def test_all_problems_can_be_asked_for_but_not_one_more() -> None:
    exist = count_distinct(1, 1)
    found = RunningSumSource(train=exist - 5, eval=5, min_terms=1, max_terms=1).make(0)
    assert len({row["prompt"] for row in found.train + found.eval}) == exist
    with pytest.raises(ValidationError, match=f"only {exist} different ones of 1 to 1 terms exist"):
        RunningSumSource(train=exist - 4, eval=5, min_terms=1, max_terms=1)
    with pytest.raises(ValidationError, match="swap them"):
        RunningSumSource(train=1, eval=1, min_terms=5, max_terms=4)


def test_jsonl_keeps_columns_and_renames_those_that_clash(tmp_path: Path) -> None:
    rows = [
        {"q": "One?", "a": 1, "level": {"hard": True}, "response": "old", "answer": "long", "id": 7},
        {"q": "Two?", "a": " 2", "level": None, "response": "old", "answer": "long", "id": 8},
    ]
    path = write(tmp_path / "problems.jsonl", rows)
    source = TypeAdapter(Source).validate_python(
        {"type": "file", "path": str(path), "prompt_column": "q", "answer_column": "a", "eval_count": 1}
    )
    found = source.make(0)
    [first] = [row for row in found.train + found.eval if row["prompt"] == "One?"]
    assert list(first.items()) == [
        ("id", "7"),
        ("prompt", "One?"),
        ("answer", "1"),
        ("level", {"hard": True}),
        ("source_response", "old"),
        ("source_answer", "long"),
    ]


def test_ids_are_made_where_the_users_are_not_unique(tmp_path: Path) -> None:
    path = write(tmp_path / "problems.jsonl", numbered(5, id="same"))
    found = FileSource(path=str(path), eval_count=2).make(0)
    rows = found.train + found.eval
    assert len({row["id"] for row in rows}) == 5
    assert {row["source_id"] for row in rows} == {"same"}
    shuffled = write(tmp_path / "shuffled.jsonl", numbered(5, id="same")[::-1])
    again = FileSource(path=str(shuffled), eval_count=2).make(0)
    assert {row["id"] for row in again.eval} == {row["id"] for row in found.eval}


def test_parquet_gives_the_same_as_jsonl(tmp_path: Path) -> None:
    rows = numbered(6, tags=["x"])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "problems.parquet")
    path = write(tmp_path / "problems.jsonl", rows)
    from_parquet = FileSource(path=str(tmp_path / "problems.parquet"), eval_count=2)
    assert from_parquet.make(3) == FileSource(path=str(path), eval_count=2).make(3)
    assert from_parquet.needs == ("pyarrow",)


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_compressed_gives_the_same_as_jsonl(codec: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"{number} + 1 = ü?", "answer": number + 1} for number in range(5000)]
    path = write(tmp_path / "problems.jsonl", rows)
    packed = tmp_path / f"problems.jsonl.{'gz' if codec == 'gzip' else 'zst'}"
    with pa.CompressedOutputStream(str(packed), codec) as stream:
        stream.write(path.read_bytes())
    source = FileSource(path=str(packed), eval_count=2)
    assert source.make(3) == FileSource(path=str(path), eval_count=2).make(3)
    assert source.needs == ("pyarrow",)
    assert "no column 'question'" in error(FileSource(path=str(packed), prompt_column="question", eval_count=2))
    packed.write_bytes(packed.read_bytes()[:-40])
    assert f"{packed}: not a whole {codec} file" in error(source)
    packed.write_bytes(b"not compressed at all")
    assert f"{packed}: not a whole {codec} file" in error(source)


def test_a_saved_dataset_gives_the_same_as_jsonl(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number} + 1 = ?", "answer": number + 1} for number in range(50)]
    path = write(tmp_path / "problems.jsonl", rows)
    DatasetDict(train=Dataset.from_list(rows)).save_to_disk(tmp_path / "saved")
    source = FileSource(path=str(tmp_path / "saved/train"), eval_count=2)
    assert source.make(3) == FileSource(path=str(path), eval_count=2).make(3)
    assert source.needs == ("datasets",)
    assert {file.suffix for file in source.external_files} == {".arrow", ".json"}
    assert f"name one of: {tmp_path}/saved/train" in error(FileSource(path=str(tmp_path / "saved"), eval_count=2))
    (tmp_path / "saved/train/data-00000-of-00001.arrow").write_bytes(b"x")
    assert "not a readable dataset" in error(source)


def test_parquet_values_become_json(tmp_path: Path) -> None:
    row = {"prompt": "p", "answer": "1", "price": Decimal("1.50"), "score": float("nan")}
    pq.write_table(pa.Table.from_pylist([row, row | {"prompt": "q"}]), tmp_path / "p.parquet")
    found = FileSource(path=str(tmp_path / "p.parquet"), eval_count=1).make(0)
    assert found.train[0]["price"] == "1.50"
    assert found.train[0]["score"] is None
    pq.write_table(pa.Table.from_pylist([{"prompt": "p", "answer": "1", "image": b"\x00"}]), tmp_path / "b.parquet")
    assert "b.parquet: row 1: found a value of type bytes" in error(
        FileSource(path=str(tmp_path / "b.parquet"), eval_count=1)
    )


def test_duplicates_are_counted_and_leave_train(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [*numbered(4), {"prompt": "WHAT is  0 + 0?\n", "answer": "0"}])
    evaluation = write(tmp_path / "eval.jsonl", [*numbered(2), *numbered(1), {"prompt": "New?", "answer": "1"}])
    found = FileSource(path=str(train), eval_path=str(evaluation)).make(0)
    assert [row["prompt"] for row in found.train] == ["What is 2 + 2?", "What is 3 + 3?"]
    assert [row["prompt"] for row in found.eval] == ["What is 0 + 0?", "What is 1 + 1?", "New?"]
    assert found.counts == {
        "rows": 5,
        "duplicates": 1,
        "eval_rows": 4,
        "eval_duplicates": 1,
        "train_also_in_eval": 2,
        "train": 2,
        "eval": 3,
    }


PROMPTS = st.lists(st.text(alphabet="aAb \n1", min_size=1).filter(str.strip), min_size=2, max_size=20)


@settings(max_examples=50, deadline=None)
@given(PROMPTS, st.integers(0, 3))
def test_splits_never_overlap(tmp_path_factory: pytest.TempPathFactory, prompts: list[str], seed: int) -> None:
    path = write(
        tmp_path_factory.mktemp("split") / "p.jsonl", [{"prompt": prompt, "answer": "1"} for prompt in prompts]
    )
    distinct = {normalise(prompt) for prompt in prompts}
    if len(distinct) < 2:
        assert "eval_count" in error(FileSource(path=str(path), eval_count=1))
        return
    found = FileSource(path=str(path), eval_count=len(distinct) // 2).make(seed)
    train, evaluation = ([normalise(row["prompt"]) for row in rows] for rows in (found.train, found.eval))
    assert len(evaluation) == len(distinct) // 2
    assert sorted(train + evaluation) == sorted(distinct)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"prompt": "x", "answer"', "problems.jsonl:4: not JSON at column"),
        ("[1]", "problems.jsonl:4: found a JSON list"),
        ('{"prompts": "x", "answer": "1"}', "problems.jsonl:4: no column 'prompt'; did you mean 'prompts'?"),
        ('{"prompt": 5, "answer": "1"}', "problems.jsonl:4: 'prompt' is a value of type int"),
        ('{"prompt": " ", "answer": "1"}', "problems.jsonl:4: 'prompt' is empty"),
        ('{"prompt": "x", "answer": null}', "problems.jsonl:4: 'answer' is null"),
        ('{"prompt": "x", "answer": true}', "problems.jsonl:4: 'answer' is a value of type bool"),
        ('{"prompt": "\\ud800", "answer": "1"}', "problems.jsonl:4: a lone surrogate"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, expected: str) -> None:
    path = write(tmp_path / "problems.jsonl", numbered(2))
    path.write_text(path.read_text() + "\n" + line + "\n")
    assert expected in error(FileSource(path=str(path), eval_count=1))


def test_unusable_files_are_named(tmp_path: Path) -> None:
    assert "no such file" in error(FileSource(path=str(tmp_path / "none.jsonl"), eval_count=1))
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "holds no problems" in error(FileSource(path=str(tmp_path / "empty.jsonl"), eval_count=1))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    assert "not a readable parquet file" in error(FileSource(path=str(tmp_path / "bad.parquet"), eval_count=1))
    (tmp_path / "p.csv").write_text("a,b")
    assert "found suffix '.csv'" in error(FileSource(path=str(tmp_path / "p.csv"), eval_count=1))


def test_asking_for_too_many_or_nothing_left(tmp_path: Path) -> None:
    path = str(write(tmp_path / "p.jsonl", numbered(3)))
    assert "holds 3 different problems, but eval_count asks for 3" in error(FileSource(path=path, eval_count=3))
    assert "train is empty" in error(FileSource(path=path, eval_path=path))
    with pytest.raises(ValidationError, match="neither is given"):
        FileSource(path=path)
    with pytest.raises(ValidationError, match="both are given"):
        FileSource(path=path, eval_path=path, eval_count=1)


def test_relative_paths_start_at_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "p.jsonl", numbered(3))
    monkeypatch.chdir(tmp_path)
    source = FileSource(path="p.jsonl", eval_count=1)
    assert source.make(0).counts["rows"] == 3
    assert source.external_files == (Path("p.jsonl"),)
