"""What the commands and the stage say of input that nobody should give them, and of a disk that takes no more."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from small_disk import mounted, remount, small_files

from data_prep.curation.curate import Curation
from data_prep.curation.steps import Steps
from data_prep.filters import ThinkingFilter
from data_prep.sources import lines
from reasonforge.cli import main
from reasonforge.errors import RequestError
from reasonforge.files import read_json, read_jsonl, write_jsonl
from reasonforge.progress import Progress

ROOT = Path(__file__).parents[2]
FILTER = ("--set", "filters=[{type: thinking}]")


def good(number: int) -> bytes:
    row = {"id": f"t{number}", "prompt": "q", "answer": "1", "response": f"<think>\n{number}\n</think>\n\\boxed{{1}}"}
    return json.dumps(row).encode()


BAD = {
    "a corrupt line": (b'{"id": "t9", "prom', "not JSON at column"),
    "a wrong column": (b'{"id": "t9", "prompt": "q", "answer": "1", "respons": "r"}', "no column 'response'"),
    "another type": (b'{"id": "t9", "prompt": "q", "answer": "1", "response": 4}', "'response' is no text"),
    "invalid UTF-8": (good(9).replace(b"q", b"\xff"), "not UTF-8 at byte"),
    "a NUL byte": (good(9).replace(b"q", b"\0"), "a NUL byte"),
    "a lone surrogate": (good(9).replace(b'"q"', b'"\\ud800"'), "a lone surrogate"),
    "a long line": (good(9).replace(b"q", b"x" * 20_000), "a line of over"),
    "a duplicated id": (good(1), "the id 't1' comes again"),
    "no object": (b"17", "found a JSON int"),
}


@pytest.fixture(autouse=True)
def short_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_BYTES", 10_000)


def rows_with(path: Path, bad: bytes) -> Path:
    path.write_bytes(b"\n".join([good(0), good(1), b"", bad, good(2)]) + b"\n")
    return path


def left(directory: Path) -> list[str]:
    """What a user finds there; the shards of what is not finished are hidden."""
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    bad, told = BAD[kind]
    source = rows_with(tmp_path / "rows.jsonl", bad)
    done = CliRunner().invoke(main, ["data", "filter", str(source), "--into", str(tmp_path / "out"), *FILTER])
    assert done.exit_code == 2
    said = [line for line in done.output.splitlines() if "rows, " not in line and "shards, " not in line]
    assert len(said) == 1
    assert said[0].startswith(f"error: {source}:4: ")
    assert told in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_is_set_aside_and_counted(kind: str, tmp_path: Path) -> None:
    bad, told = BAD[kind]
    source, out = rows_with(tmp_path / "rows.jsonl", bad), tmp_path / "out"
    done = CliRunner().invoke(main, ["data", "filter", str(source), "--into", str(out), *FILTER, "--set-aside"])
    assert done.exit_code == 0, done.output
    (aside,) = read_jsonl(out / "bad.jsonl")
    assert (aside["file"], aside["line"]) == ("rows.jsonl", 4)
    assert told in aside["problem"]
    assert [row["id"] for row in read_jsonl(out / "dataset.jsonl")] == ["t0", "t1", "t2"]
    step = read_json(out / "funnel.json")["steps"][0]
    assert step == {"step": "read", "in": 4, "out": 3, "dropped": {aside["reason"]: 1}}
    assert "set_aside: 1" in done.output


def one_file(step: str, source: Path, out: Path, *more: str) -> Result:
    options = {"verify": "grader.type=exact", "annotate": "annotate=[{type: escape}]"}
    return CliRunner().invoke(main, ["data", step, str(source), str(out), "--set", options[step], *more])


@pytest.mark.parametrize("step", ["verify", "annotate"])
@pytest.mark.parametrize("kind", BAD)
def test_commands_that_write_one_file_set_aside_beside_it(step: str, kind: str, tmp_path: Path) -> None:
    bad, told = BAD[kind]
    if (step, kind) == ("annotate", "a wrong column"):
        bad, told = bad.replace(b"prompt", b"promt"), "no column 'prompt'"
    source, out = rows_with(tmp_path / "rows.jsonl", bad), tmp_path / "made.jsonl"
    refused = one_file(step, source, out)
    assert refused.exit_code == 2
    assert f"error: {source}:4: " in refused.output.splitlines()[-1]
    assert told in refused.output.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    done = one_file(step, source, out, "--set-aside", "--json")
    assert done.exit_code == 0, done.output
    counts = json.loads(done.stdout)
    assert (counts["set_aside"], counts["rows"]) == (1, 3)
    assert [row["id"] for row in read_jsonl(out)] == ["t0", "t1", "t2"]
    (aside,) = read_jsonl(tmp_path / "made.bad.jsonl")
    assert (aside["file"], aside["line"]) == ("rows.jsonl", 4)
    assert told in aside["problem"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.bad.jsonl", "made.jsonl", "rows.jsonl"]
    again = one_file(step, source, tmp_path / "made.jsonl", "--set-aside")
    assert (again.exit_code, "made.jsonl: is already there" in again.output) == (2, True)


def test_a_kill_between_the_two_files_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = rows_with(tmp_path / "rows.jsonl", b"bad"), tmp_path / "made.jsonl"
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if target == out:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        stopped = one_file("verify", source, out, "--set-aside")
    assert stopped.exit_code == 130
    assert stopped.output.splitlines()[-1] == "stopped; the same command goes on from here"
    assert left(tmp_path) == ["made.bad.jsonl", "rows.jsonl"]
    assert one_file("verify", source, out, "--set-aside").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.bad.jsonl", "made.jsonl", "rows.jsonl"]
    out.unlink()
    theirs = one_file("verify", source, out, "--set-aside")
    assert (theirs.exit_code, "made.bad.jsonl: is already there" in theirs.output) == (2, True)


@pytest.mark.parametrize("kind", ["compressed", "mapped"])
def test_rows_that_are_copied_keep_their_places(kind: str, tmp_path: Path) -> None:
    """The line that is told is that of the user's file, also where it is compressed or has other columns."""
    source = rows_with(tmp_path / "rows.jsonl", good(9).replace(b"q", b"\xff"))
    with open(source, "ab") as handle:
        handle.write(good(1) + b"\n" + good(7).replace(b'"response": ', b'"response": 7, "r": ') + b"\n")
    columns = ("--column", "given=answer") if kind == "mapped" else ()
    if kind == "compressed":
        compressed = tmp_path / "rows.jsonl.gz"
        compressed.write_bytes(gzip.compress(source.read_bytes()))
        source = compressed
    arguments = ["data", "filter", str(source), "--into", str(tmp_path / "out"), *FILTER, *columns]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 2
    assert refused.output.splitlines()[-1].startswith(f"error: {source}:4: not UTF-8")
    done = CliRunner().invoke(main, [*arguments, "--set-aside"])
    assert done.exit_code == 0, done.output
    assert sorted((row["line"], row["file"], row["reason"]) for row in read_jsonl(tmp_path / "out" / "bad.jsonl")) == [
        (4, source.name, "not UTF-8"),
        (6, source.name, "duplicated id"),
        (7, source.name, "'response' is no text"),
    ]
    assert read_json(tmp_path / "out" / "funnel.json")["steps"][0]["in"] == 6


def test_an_id_is_told_apart_over_all_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_bytes(good(0) + b"\n" + good(1) + b"\n")
    second.write_bytes(good(2) + b"\n\n" + good(1).replace(b'"q"', b'"another"') + b"\n" + good(0) + b"\n")
    arguments = ["data", "dedup", str(first), str(second), "--into", str(tmp_path / "out")]
    refused = CliRunner().invoke(main, arguments)
    told = f"error: {second}:3: the id 't1' comes again: {first}:2 has it already; give each row an id of its own"
    assert (refused.exit_code, refused.output.splitlines()[-1]) == (2, told)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]
    assert CliRunner().invoke(main, [*arguments, "--set-aside"]).exit_code == 0
    assert [row["id"] for row in read_jsonl(tmp_path / "out" / "dataset.jsonl")] == ["t0", "t1", "t2"]
    (aside,) = read_jsonl(tmp_path / "out" / "bad.jsonl")
    assert (aside["file"], aside["line"], aside["reason"]) == ("b.jsonl", 3, "duplicated id")
    (dropped,) = read_jsonl(tmp_path / "out" / "dropped.jsonl")  # the same row in both files
    assert (dropped["id"], dropped["dropped_by"], dropped["duplicate_of"]) == ("t0", "deduplicate", "t0")


def test_rows_without_ids_get_those_of_their_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [{"prompt": f"{name}{number}", "response": "r"} for number in range(2)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    done = CliRunner().invoke(main, ["data", "dedup", *files, "--into", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    found = [(row["id"], row["prompt"]) for row in read_jsonl(tmp_path / "out" / "dataset.jsonl")]
    assert found == [("1/1", "a0"), ("1/2", "a1"), ("2/1", "b0"), ("2/2", "b1")]


def test_a_line_of_50_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is passed over in pieces: what it takes is the limit, not its length."""
    monkeypatch.undo()
    source = tmp_path / "rows.jsonl"
    with open(source, "wb") as handle:
        handle.write(good(0) + b'\n{"id": "t1", "response": "')
        for _ in range(50):
            handle.write(b"x" * (1 << 20))
        handle.write(b'"}\n' + good(2) + b"\n")
    steps = Steps(filters=[ThinkingFilter()])
    with pytest.raises(RequestError, match=r"rows\.jsonl:2: a line of over 32 MiB; no row is that long"):
        Curation([source], steps, tmp_path / "refused").work(workers=1, progress=Progress)
    curation = Curation([source], steps.model_copy(update={"bad_rows": "set_aside"}), tmp_path / "aside")
    curation.work(workers=1, progress=Progress)
    (tmp_path / "out").mkdir()
    assert curation.finish(tmp_path / "out", seed=0, progress=Progress)["set_aside"] == 1
    assert [row["id"] for row in read_jsonl(tmp_path / "out" / "dataset.jsonl")] == ["t0", "t2"]


@pytest.mark.parametrize("content", [b"", b"\n \n\n"])
def test_an_empty_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    arguments = ["data", "filter", str(tmp_path / "rows.jsonl"), "--into", str(tmp_path / "out"), *FILTER]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert done.output.splitlines()[-1] == f"error: {tmp_path / 'rows.jsonl'}: no rows to curate"
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def command(*arguments: object, before: Any = None) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
    code = "from reasonforge.cli import main; main()"
    words = [sys.executable, "-c", code, "data", *map(str, arguments)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, preexec_fn=before)


def check_one_line(done: "subprocess.CompletedProcess[str]", told: str, code: int = 2) -> None:
    assert done.returncode == code, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert told in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk(workers: int, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    padding = b"so " * 3000
    source.write_bytes(b"".join(good(n).replace(b'"q"', b'"' + padding + b'"') + b"\n" for n in range(1000)))
    arguments = ["filter", source, "--into", tmp_path / "out", *FILTER, "--workers", workers]
    check_one_line(command(*arguments, before=small_files), "file too large for the disk", 1)
    assert left(tmp_path) == ["rows.jsonl"]
    assert command(*arguments).returncode == 0  # and it goes on once there is room
    assert sum(1 for _ in read_jsonl(tmp_path / "out" / "dataset.jsonl")) == 1000


def test_a_full_file_system(tmp_path: Path) -> None:
    """A file system of 1 MiB, where this user may make one."""
    with mounted(tmp_path / "disk", "size=1m") as disk:
        source = tmp_path / "rows.jsonl"
        source.write_bytes(b"".join(good(number) + b"\n" for number in range(20_000)))
        done = command("filter", source, "--into", disk / "out", *FILTER)
        check_one_line(done, "no space left on the disk; make room, then the same command goes on", 1)
        assert left(disk) == []
        remount(disk, "size=64m")
        assert command("filter", source, "--into", disk / "out", *FILTER).returncode == 0
        assert sum(1 for _ in read_jsonl(disk / "out" / "dataset.jsonl")) == 20_000
        assert sorted(path.name for path in disk.iterdir()) == ["out"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_an_output_that_is_read_only(tmp_path: Path) -> None:
    source = rows_with(tmp_path / "rows.jsonl", good(5))
    (tmp_path / "kept").mkdir(mode=0o555)
    done = command("filter", source, "--into", tmp_path / "kept" / "out", *FILTER)
    check_one_line(done, "kept: cannot be written; name a place that can")


def test_a_file_system_that_is_read_only(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "ro") as disk:
        source = rows_with(tmp_path / "rows.jsonl", good(5))
        check_one_line(command("filter", source, "--into", disk / "out", *FILTER), "disk: cannot be written")
