"""`reasonforge data …` as a user types it."""

import json
import os
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bpe_fixture import save_bpe
from click.testing import CliRunner, Result
from desk import COMMAND, QUIET
from tokenizer_fixture import save_tokenizer

from reasonforge.cli import main
from reasonforge.files import read_jsonl, write_jsonl


def run(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(main, ["data", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done


def traces(path: Path, count: int = 40, padding: int = 0) -> Path:
    write_jsonl(
        path,
        (
            {
                "id": f"t{number}",
                "prompt": f"What is {number}+1?",
                "answer": str(number + 1),
                "response": f"<think>\nhm{' so' * padding}\n</think>\n\\boxed{{{number + bool(number % 5)}}}",
            }
            for number in range(count)
        ),
    )
    return path


def test_verify_adds_verdicts(tmp_path: Path) -> None:
    source, graded = traces(tmp_path / "traces.jsonl"), tmp_path / "graded.jsonl"
    said = json.loads(run("verify", source, graded, "--set", "grader.type=exact", "--json").stdout)
    assert said == {"rows": 40, "correct": 32, "wrong": 8}
    rows = list(read_jsonl(graded))
    assert [row["id"] for row in rows] == [f"t{number}" for number in range(40)]
    assert [row["id"] for row in rows if row["verdict"] == "wrong"] == [f"t{number}" for number in range(0, 40, 5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graded.jsonl", "traces.jsonl"]
    assert json.loads(run("stats", graded, "--json").stdout)["verdict"] == {"correct": 32, "wrong": 8}


def test_verify_killed_goes_on(tmp_path: Path) -> None:
    import subprocess

    source, graded = traces(tmp_path / "traces.jsonl", 8000, padding=1000), tmp_path / "graded.jsonl"
    command = [COMMAND, "data", "verify", source, graded, "--set", "grader.type=math_verify"]
    process = subprocess.Popen(command, env={**os.environ, **QUIET}, start_new_session=True)
    while len(list(tmp_path.glob(".graded.jsonl.working/*/shards/marks-*.jsonl"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not graded.exists()
    assert len(list(tmp_path.glob(".graded.jsonl.working/*/shards/marks-*.jsonl"))) < 6
    run("verify", source, graded, "--set", "grader.type=math_verify")
    run("verify", source, tmp_path / "again.jsonl", "--set", "grader.type=math_verify")
    assert graded.read_bytes() == (tmp_path / "again.jsonl").read_bytes()


def test_tokenize_and_pack(tmp_path: Path) -> None:
    source, model = traces(tmp_path / "traces.jsonl"), save_tokenizer(tmp_path / "model")
    said = run("tokenize", source, tmp_path / "tokens", "--model", model, "--max-tokens", 200, "--json").stdout
    tokens = json.loads(said)["tokens"]
    parquet = tmp_path / "tokens/tokens.parquet"
    for kind, name in (("nemo", "packed.npy"), ("bridge", "packed.idx.parquet")):
        packed = json.loads(run("pack", parquet, tmp_path / name, "--format", kind, "--size", 512, "--json").stdout)
        assert (packed["rows"], packed["tokens"], packed["dropped"]) == (40, tokens - 40, {})
        assert packed["bins"] == -(-(tokens - 40) // 512)
    bins = pq.read_table(tmp_path / "packed.idx.parquet").to_pylist()
    assert sum(len(row["input_ids"]) for row in bins) == tokens
    assert sum(len(row["seq_start_id"]) for row in bins) == 40
    refused = run("pack", parquet, tmp_path / "small.npy", "--format", "nemo", "--size", 8, code=2).output
    assert "a bin of 8 takes rows of 2 to 9" in refused
    assert not (tmp_path / "small.npy").exists()


def test_filter_dedup_and_decontaminate(tmp_path: Path) -> None:
    source, graded = traces(tmp_path / "traces.jsonl"), tmp_path / "graded.jsonl"
    run("verify", source, graded, "--set", "grader.type=exact")
    run("filter", graded, "--into", tmp_path / "correct", "--set", "filters=[{type: correct}]")
    kept = [row["id"] for row in read_jsonl(tmp_path / "correct/dataset.jsonl")]
    assert kept == [f"t{number}" for number in range(40) if number % 5]
    dropped = list(read_jsonl(tmp_path / "correct/dropped.jsonl"))
    assert [(row["dropped_by"], row["reason"]) for row in dropped] == [("correct", "wrong")] * 8
    run("dedup", tmp_path / "correct/dataset.jsonl", graded, "--into", tmp_path / "once", "--near")
    once = [row["id"] for row in read_jsonl(tmp_path / "once/dataset.jsonl")]
    assert sorted(once) == sorted(f"t{number}" for number in range(40))
    assert once[:32] == kept
    write_jsonl(tmp_path / "eval.jsonl", [{"question": "What is 3+1?"}, {"question": "Never asked"}])
    arguments = ("--against", tmp_path / "eval.jsonl", "--prompt-column", "question")
    run("decontaminate", source, "--into", tmp_path / "clean", *arguments)
    (hit,) = read_jsonl(tmp_path / "clean/dropped.jsonl")
    assert (hit["id"], hit["contamination"][0]["problem_id"]) == ("t3", "0")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_files_of_others(tmp_path: Path) -> None:
    """Other kinds of files, with other names of columns, and without ids."""
    rows = [{"question": f"{number}+1?", "gold": str(number + 1), "generation": f"\\boxed{{{number + 1}}}"}
            for number in range(6)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "theirs.parquet")
    columns = [
        word for pair in ("prompt=question", "answer=gold", "response=generation") for word in ("--column", pair)
    ]
    said = run("verify", tmp_path / "theirs.parquet", tmp_path / "graded.jsonl", "--set", "grader.type=exact", *columns)
    assert "correct: 6" in said.output
    assert list(read_jsonl(tmp_path / "graded.jsonl"))[1] == {
        "prompt": "1+1?", "answer": "2", "response": "\\boxed{2}", "id": "2", "verdict": "correct", "extracted": "2"
    }  # fmt: skip
    told = run("verify", tmp_path / "theirs.parquet", tmp_path / "b.jsonl", "--set", "grader.type=exact",
               "--column", "prompt=questions", code=2).output  # fmt: skip
    assert "theirs.parquet: row 1: no column 'questions'; did you mean 'question'?" in told.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir() if "working" not in path.name) == [
        "graded.jsonl", "theirs.parquet"
    ]  # fmt: skip


def test_annotate_and_select(tmp_path: Path) -> None:
    source, marked = traces(tmp_path / "traces.jsonl"), tmp_path / "marked.jsonl"
    run("annotate", source, marked, "--set", "annotate=[{type: escape}]")
    assert all(row["escaped"] == {} for row in read_jsonl(marked))
    unknown = run("annotate", source, tmp_path / "no.jsonl", "--set", "filters=[]", code=2).output
    assert "--set: filters: unknown key" in unknown
    balanced = "select=[{type: balanced, rows: 10, unit: words, by: [answer]}]"
    run("select", source, "--into", tmp_path / "some", "--set", balanced)
    assert sum(1 for _ in read_jsonl(tmp_path / "some" / "dataset.jsonl")) == 10


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("verify", "absent.jsonl", "out.jsonl", "--set", "grader.type=exact"), "absent.jsonl: no such file"),
        (("verify", "traces.jsonl", "out.jsonl", "--set", "grader.type=exakt"), "did you mean 'exact'?"),
        (("verify", "traces.jsonl", "out.jsonl"), "--set: grader: missing"),
        (("verify", "traces.jsonl", "traces.jsonl", "--set", "grader.type=exact"), "is already there"),
        (("verify", "traces.jsonl", "no/out.jsonl", "--set", "grader.type=exact"), "no: no such directory"),
        (("stats", "traces.csv"), "found suffix '.csv'"),
        (("annotate", "traces.jsonl", "out.jsonl", "--set", "annotate=[]"), "an empty list, so there is nothing to do"),
        (("tokenize", "t.jsonl.gz", "out.jsonl", "--model", ".", "--max-tokens", "9"), "no plain jsonl file"),
        (("index", ".", "out.jsonl", "--model", "."), "no plain jsonl file"),
        (
            ("pack", "t.parquet", "out.jsonl", "--format", "nemo", "--size", "9", "--dropped", "traces.jsonl"),
            "traces.jsonl: is already there",
        ),
        (("dedup", "traces.jsonl", "--into", "out.jsonl", "--column", "a=b", "--column", "a=c"), "a is b already"),
        (("decontaminate", "traces.jsonl", "--into", "out.jsonl", "--against", "none.jsonl"), "no evaluation problems"),
        (
            ("filter", "traces.jsonl", "--into", "out.jsonl", "--set", "filters=[{type: correct}]"),
            "no column 'verdict'",
        ),
        (("dedup", "traces.jsonl", "--into", "out.jsonl", "--set", "threshold=2"), "threshold: found 2"),
        (("decontaminate", "traces.jsonl", "--into", "out.jsonl", "--against", "nix.jsonl"), "nix.jsonl: no such file"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    traces(tmp_path / "traces.jsonl")
    (tmp_path / "traces.csv").write_text("a,b\n")
    (tmp_path / "none.jsonl").touch()
    output = run(*arguments, code=2).output.splitlines()
    assert told in output[-1]
    assert [line for line in output if "rows, " not in line] == output[-1:]  # besides progress
    assert not (tmp_path / "out.jsonl").exists()


def test_index_writes_megatrons_files(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_bpe(tmp_path / "model")
    write_jsonl(tmp_path / "texts.jsonl", ({"text": "one two three"} for _ in range(5)))
    done = run("index", tmp_path / "texts.jsonl", tmp_path / "all", "--model", tmp_path / "model", "--json")
    assert json.loads(done.stdout)["documents"] == 5
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["all_text_document.bin", "all_text_document.idx", "model", "texts.jsonl"]
    again = run("index", tmp_path / "texts.jsonl", tmp_path / "all", "--model", tmp_path / "model", code=2)
    assert "is already there" in again.output
    write_jsonl(tmp_path / "none.jsonl", [])
    run("index", tmp_path / "none.jsonl", tmp_path / "no", "--model", tmp_path / "model", code=2)
    assert not list(tmp_path.glob(".*"))
