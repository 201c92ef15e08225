"""The stage `curate`, killed at moments that nobody chose: what it publishes does not tell."""

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import killing
import pytest

from reasonforge.files import read_json, read_jsonl
from recipes.recipe import Recipe, save_resolved
from recipes.run_directory import RunDirectory
from recipes.run_stage import run_stage

KILLS = 10
FILES = ("dataset.jsonl", "dropped.jsonl", "funnel.json", "README.md", "bad.jsonl")

DRIVER = """
import sys

import data_prep.curation.curate
from recipes.run_stage import main

if __name__ == "__main__":
    data_prep.curation.curate.SHARD_BYTES = 30_000
    sys.exit(main())
"""


def recipe(array: int, workers: int) -> Recipe:
    """All steps of curation, after a teacher whose slips and haste give each of them something to do."""
    return Recipe.model_validate(
        {
            "name": "r",
            "seed": 1,
            "stages": {
                "problems": {"type": "problems", "source": {"type": "running_sum", "train": 700, "eval": 20}},
                "generate": {
                    "type": "generate",
                    "inputs": {"problems": "problems"},
                    "sampling": {"samples": 3},
                    "engine": {"type": "programmatic", "hasty_rate": 0.15, "wrong_rate": 0.1},
                },
                "curate": {
                    "type": "curate",
                    "inputs": {"traces": "generate", "problems": "problems"},
                    "grader": {"type": "exact"},
                    "annotate": [{"type": "difficulty"}],
                    "decontaminate": {"n": 3, "inside": 2},
                    "near_duplicates": {"threshold": 0.6, "size": 2},
                    "select": [{"type": "shortest_correct", "unit": "characters"}],
                    "bad_rows": "set_aside",
                    "workers": workers,
                    "resources": {"array": array},
                },
            },
        }
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run up to the traces, some of them damaged, and its dataset, which nobody disturbed."""
    run = RunDirectory(tmp_path_factory.mktemp("whole") / "run")
    save_resolved(recipe(1, 1), run.recipe)
    run_stage(run, "problems")
    spoil(run_stage(run, "generate").path / "traces.jsonl")
    run_stage(run, "curate")
    return run


def spoil(traces: Path) -> None:
    """Damage lines without changing the file's size, which the receipt knows."""
    lines = traces.read_bytes().split(b"\n")
    for number in (5, 700, 1500):
        lines[number] = b"#" * len(lines[number])
    traces.write_bytes(b"\n".join(lines))


def start(script: Path, run: RunDirectory, arguments: Sequence[object]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, script, run.root, "curate", *arguments]
    environment = {"PYTHONPATH": str(killing.ROOT), "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE)


def await_work(run: RunDirectory, process: "subprocess.Popen[bytes]") -> None:
    """Until it has begun, so that a busy machine does not make all kills come before the work."""
    deadline = time.monotonic() + killing.PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        if any(event.get("pid") == process.pid for event in run.read_events()):
            return
        time.sleep(0.005)


def ended(processes: Sequence[int]) -> None:
    """Wait for the workers of a killed process: each sees for itself that nobody is left to work for."""
    deadline = time.monotonic() + killing.PATIENCE_S
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.02)


@pytest.mark.parametrize(("array", "workers"), [(1, 3), (4, 1), (7, 2)])
def test_ten_kills_leave_no_trace(array: int, workers: int, made: RunDirectory, tmp_path: Path) -> None:
    draw = random.Random(array)
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(made.root, run.root)
    shutil.rmtree(run.stage("curate"))
    save_resolved(recipe(array, workers), run.recipe)
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    tasks: list[list[object]] = [["--part", part] for part in range(array)] if array > 1 else []
    kills = 0
    while kills < KILLS:
        process = start(script, run, draw.choice([*tasks, []]) if tasks else [])
        await_work(run, process)
        try:
            process.wait(draw.uniform(0.0, 1.2))
        except subprocess.TimeoutExpired:
            workers_of = killing.descendants(process.pid)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            ended(workers_of)
            kills += 1
        else:
            _, told = process.communicate()
            assert process.returncode == 0, told.decode()
            if run.stage("curate").exists():  # too fast: a part of the work again
                shutil.rmtree(run.stage("curate"))
    for arguments in [*tasks[:1], []]:  # the finishing run does what parts have left
        process = start(script, run, arguments)
        _, told = process.communicate(timeout=killing.PATIENCE_S)
        assert process.returncode == 0, told.decode()
    for name in FILES:
        assert (run.stage("curate") / name).read_bytes() == (made.stage("curate") / name).read_bytes()


def test_what_was_curated(made: RunDirectory) -> None:
    """Every step had something to do, or the kills would show little."""
    out = made.stage("curate")
    funnel = read_json(out / "funnel.json")
    dropped = {step["step"]: sum(step["dropped"].values()) for step in funnel["steps"]}
    assert dropped["read"] == 3
    steps = ("correct", "deduplicate", "decontaminate", "near_duplicates", "select-shortest_correct")
    assert all(dropped[step] > 0 for step in steps), dropped
    rows = sum(1 for _ in read_jsonl(out / "dataset.jsonl"))
    assert rows + sum(1 for _ in read_jsonl(out / "dropped.jsonl")) == funnel["steps"][1]["in"] == 2097
    assert [row["line"] for row in read_jsonl(out / "bad.jsonl")] == [6, 701, 1501]


def test_a_part_repeats_only_what_it_had_not_done(made: RunDirectory, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(made.root, run.root)
    shutil.rmtree(run.stage("curate"))
    save_resolved(recipe(4, 1), run.recipe)
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)

    def shards() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in run.root.glob("work/curate/*/scratch/shards/marks-*")}

    assert start(script, run, ["--part", 2]).wait(killing.PATIENCE_S) == 0
    first = shards()
    assert len(first) > 2
    lost = min(first)
    next(run.root.glob(f"work/curate/*/scratch/shards/{lost}")).unlink()
    assert start(script, run, ["--part", 2]).wait(killing.PATIENCE_S) == 0
    again = shards()
    assert {name for name in again if again[name] != first.get(name)} == {lost}
    for part in (0, 1, 3):
        assert start(script, run, ["--part", part]).wait(killing.PATIENCE_S) == 0
    everything = shards()
    assert start(script, run, []).wait(killing.PATIENCE_S) == 0
    assert len(everything) > 10
    assert (run.stage("curate") / "dataset.jsonl").read_bytes() == (made.stage("curate") / "dataset.jsonl").read_bytes()
