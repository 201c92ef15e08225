"""What the commands and the stage say of input that nobody should give them, and of a disk that takes no more."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from data_prep import lines
from data_prep.curation import Curation
from data_prep.filters import ThinkingFilter
from data_prep.steps import Steps
from reasonforge.cli import main
from reasonforge.errors import RequestError
from reasonforge.files import read_json, read_jsonl
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
    assert left(tmp_path) == ["rows.jsonl"]


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
    assert done.exit_code == 1
    assert "there are no traces to curate" in done.output.splitlines()[-1]
    assert left(tmp_path) == ["rows.jsonl"]


def command(*arguments: object, before: Any = None) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
    code = "from reasonforge.cli import main; main()"
    words = [sys.executable, "-c", code, "data", *map(str, arguments)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, preexec_fn=before)


def small_files() -> None:
    """No file may become larger than 64 KiB: a disk that is full in the middle of a write, without one."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))


def check_one_line(done: "subprocess.CompletedProcess[str]", told: str) -> None:
    assert done.returncode == 2, done.stderr
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
    check_one_line(command(*arguments, before=small_files), "a file may not become as large; what was finished is kept")
    assert left(tmp_path) == ["rows.jsonl"]
    assert command(*arguments).returncode == 0  # and it goes on once there is room
    assert sum(1 for _ in read_jsonl(tmp_path / "out" / "dataset.jsonl")) == 1000


@contextmanager
def mounted(place: Path, option: str) -> Iterator[Path]:
    """A file system in memory at a place, where this user may have one."""
    place.mkdir()
    tools = shutil.which("mount"), shutil.which("umount")
    words = [str(tools[0]), "-t", "tmpfs", "-o", option, "tmpfs", str(place)]
    if None in tools or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield place
    finally:
        subprocess.run([str(tools[1]), str(place)], check=True)


def test_a_full_file_system(tmp_path: Path) -> None:
    """A file system of 1 MiB, where this user may make one."""
    with mounted(tmp_path / "disk", "size=1m") as disk:
        source = tmp_path / "rows.jsonl"
        source.write_bytes(b"".join(good(number) + b"\n" for number in range(20_000)))
        done = command("filter", source, "--into", disk / "out", *FILTER)
        check_one_line(done, "no space is left on the disk; what was finished is kept")
        assert left(disk) == []


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
