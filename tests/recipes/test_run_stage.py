"""One stage by itself: what it refuses, what its receipt says, and what it makes of work that a kill left behind."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reasonforge import artifacts
from reasonforge.errors import RequestError
from recipes import run_stage as module
from recipes.recipe import Recipe, save_resolved
from recipes.run_directory import RunDirectory
from recipes.run_stage import open_job, run_stage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    recipe = {
        "name": "r",
        "seed": 1,
        "stages": {
            "problems": {"type": "problems", "source": {"type": "running_sum", "train": 50, "eval": 5}},
            "generate": {"type": "generate", "inputs": {"problems": "problems"}, "engine": {"type": "programmatic"}},
            "curate": {
                "type": "curate",
                "inputs": {"traces": "generate", "problems": "problems"},
                "grader": {"type": "exact"},
            },
        },
    }
    save_resolved(Recipe.model_validate(recipe), run.recipe)
    return run


def command(*arguments: object, before: str = "") -> "subprocess.CompletedProcess[str]":
    """`python -m recipes.run_stage`, after some Python of ours where it is given."""
    start = ["-c", f"{before}; from recipes.run_stage import main; sys.exit(main())"] if before else []
    return subprocess.run(
        [sys.executable, *(start or ["-m", "recipes.run_stage"]), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def started(run: RunDirectory) -> list[tuple[str, int]]:
    return [(event["stage"], event["attempt"]) for event in run.read_events() if event["event"] == "stage_started"]


def test_the_receipt_tells_how_it_was_made(run: RunDirectory) -> None:
    for stage in ("problems", "generate", "curate"):
        run_stage(run, stage)
    receipt = artifacts.verify(run.stage("curate")).receipt
    assert (receipt.stage, receipt.stage_type, receipt.kind) == ("curate", "curate", "dataset")
    assert receipt.config["seed"] == 1
    assert receipt.config["grader"] == {"type": "exact"}
    assert not {"inputs", "workers"} & set(receipt.config)
    assert {name: record.stage for name, record in receipt.inputs.items()} == {
        "traces": "generate",
        "problems": "problems",
    }
    assert list(receipt.lineage) == ["problems", "generate"]
    assert receipt.lineage["generate"]["digest"] == receipt.inputs["traces"].digest
    assert receipt.lineage["generate"]["inputs"]["problems"]["digest"] == receipt.inputs["problems"].digest
    assert receipt.cost.attempt == 1
    assert receipt.cost.wall_s > 0
    assert receipt.cost.cpu_s > 0
    assert receipt.cost.peak_rss_bytes > 10 * 2**20
    assert receipt.counts["rows_in"] == 50
    assert receipt.environment["python"].startswith("3.")
    assert not list(run.work("curate").glob("*"))


def test_work_that_was_sealed_but_not_published_is_published(run: RunDirectory) -> None:
    made = run_stage(run, "problems")
    workspace = open_job(run, "problems").workspace
    workspace.mkdir(parents=True)
    run.stage("problems").rename(workspace / "out")
    assert run_stage(run, "problems").receipt == made.receipt
    assert started(run) == [("problems", 1)]


def test_a_kill_between_the_two_renames_of_a_replacement(run: RunDirectory) -> None:
    made = run_stage(run, "problems")
    workspace = open_job(run, "problems").workspace
    workspace.mkdir(parents=True)
    shutil.copytree(run.stage("problems"), workspace / "out")
    run.stage("problems").rename(workspace / "replaced.1")
    assert run_stage(run, "problems").digest == made.digest
    assert artifacts.verify(run.stage("problems")).digest == made.digest
    assert not run.work("problems").exists()


def test_half_made_output_is_made_again(run: RunDirectory) -> None:
    workspace = open_job(run, "problems").workspace
    (workspace / "out").mkdir(parents=True)
    (workspace / "out" / "train.jsonl").write_text('{"torn')
    (workspace / "out" / "stray").touch()
    (workspace / "attempts").write_text("3")
    found = run_stage(run, "problems")
    assert set(found.receipt.files) == {"train.jsonl", "eval.jsonl"}
    assert found.receipt.cost.attempt == 4
    assert artifacts.verify(run.stage("problems")) == found


def test_a_directory_without_a_receipt_is_no_artifact(run: RunDirectory) -> None:
    run_stage(run, "problems")
    (run.stage("problems") / "receipt.json").unlink()
    with pytest.raises(
        RequestError, match=r"^stage generate: its input problems has not been made; run stage problems"
    ):
        run_stage(run, "generate")
    run_stage(run, "problems")
    run_stage(run, "generate")
    assert len(run.published()) == 2


def test_forcing_makes_the_same_again_and_leaves_the_old_until_then(run: RunDirectory) -> None:
    first = run_stage(run, "problems")
    os.utime(first.path / "train.jsonl", (0, 0))
    assert run_stage(run, "problems").digest == first.digest
    assert (first.path / "train.jsonl").stat().st_mtime == 0
    assert run_stage(run, "problems", force=True).digest == first.digest
    assert (first.path / "train.jsonl").stat().st_mtime > 0
    assert started(run) == [("problems", 1), ("problems", 1)]


def test_a_stage_that_another_process_does_is_left_to_it(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_PATIENCE_S", 0.2)
    run.stage_lock("problems").parent.mkdir(parents=True)
    with open(run.stage_lock("problems"), "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(RequestError, match=r"^stage problems: another process is doing it; wait for that one"):
            run_stage(run, "problems")
    assert not run.stage("problems").exists()


def test_a_lock_that_is_held_for_an_instant_is_waited_for(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_PATIENCE_S", 60.0)
    run.stage_lock("problems").parent.mkdir(parents=True)
    taken = threading.Event()

    def look() -> None:
        with open(run.stage_lock("problems"), "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH)
            taken.set()
            time.sleep(0.3)

    looker = threading.Thread(target=look)
    looker.start()
    taken.wait()
    run_stage(run, "problems")
    looker.join()
    assert len(run.published()) == 1


def test_exit_codes_and_events(run: RunDirectory) -> None:
    done = command(run.root, "curate")
    assert done.returncode == 2
    assert done.stderr == "error: stage curate: its input traces has not been made; run stage generate first\n"
    done = command(run.root, "nothing")
    assert done.returncode == 2
    assert "no stage 'nothing'; choose one of: problems, generate, curate" in done.stderr
    assert [event["event"] for event in run.read_events()] == ["stage_failed", "stage_failed"]
    assert command(run.root, "problems").returncode == 0
    assert run.stage("problems").is_dir()


def test_a_directory_that_is_no_run_stays_as_it_is(tmp_path: Path) -> None:
    done = command(tmp_path / "absent", "problems")
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'absent' / 'recipe.json'}: no such file\n"
    assert not (tmp_path / "absent").exists()


def test_an_error_nobody_foresaw_is_logged_whole_and_told_in_a_line(run: RunDirectory) -> None:
    done = command(
        run.root, "problems", before="import sys; from data_prep.sources import running_sum as task; del task.draw"
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    *_, last = run.read_events()
    assert (last["event"], last["exit_code"], last["error"]) == (
        "stage_failed",
        1,
        "AttributeError: module 'data_prep.sources.running_sum' has no attribute 'draw'",
    )
    assert not run.stage("problems").exists()
    assert run_stage(run, "problems").receipt.cost.attempt == 2


def test_the_parent_is_gone_before_the_stage_could_watch_it(run: RunDirectory) -> None:
    done = command(run.root, "problems", "--with-parent", 1 if os.getpid() != 1 else 2)
    assert done.returncode == -9
    assert not run.stage("problems").exists()
    assert command(run.root, "problems", "--with-parent", os.getpid()).returncode == 0
    assert json.loads((run.stage("problems") / "receipt.json").read_text())["cost"]["attempt"] == 1
