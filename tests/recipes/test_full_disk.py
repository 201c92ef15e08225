"""Stages on a disk that fills up, their logs and events with them: one line, nothing half done, and they go on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_disk import mounted, remount, small_files

from reasonforge import artifacts
from reasonforge.files import read_jsonl
from recipes.recipe import Recipe, save_resolved
from recipes.run_directory import RunDirectory

ROOT = Path(__file__).parents[2]
STAGES = ("problems", "generate", "curate")


def make(place: Path) -> RunDirectory:
    run = RunDirectory(place / "run")
    stages = {
        "problems": {"type": "problems", "source": {"type": "running_sum", "train": 1000, "eval": 5}},
        "generate": {"type": "generate", "inputs": {"problems": "problems"}, "engine": {"type": "programmatic"}},
        "curate": {
            "type": "curate",
            "inputs": {"traces": "generate", "problems": "problems"},
            "grader": {"type": "exact"},
        },
    }
    save_resolved(Recipe.model_validate({"name": "r", "seed": 1, "stages": stages}), run.recipe)
    return run


def do(run: RunDirectory, stage: str) -> tuple[int, str]:
    """Run a stage as a launcher does, its log in the run directory; the exit code and this attempt's log."""
    log = run.log(stage)
    log.parent.mkdir(exist_ok=True)
    before = log.stat().st_size if log.exists() else 0
    with open(log, "ab") as handle:
        command = [sys.executable, "-m", "recipes.run_stage", str(run.root), stage]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, stdout=handle, stderr=handle, env=environment, check=False)
    return done.returncode, log.read_bytes()[before:].decode()


def digests(run: RunDirectory) -> list[str]:
    return [artifacts.verify(run.stage(stage)).digest for stage in STAGES]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    run = make(tmp_path_factory.mktemp("roomy"))
    assert [do(run, stage)[0] for stage in STAGES] == [0, 0, 0]
    return digests(run)


@pytest.mark.parametrize(("fails", "room"), [("problems", 36), ("generate", 48), ("curate", 400)])
def test_a_disk_that_fills_up_costs_an_attempt(fails: str, room: int, whole: list[str], tmp_path: Path) -> None:
    """With `room` KiB more than what there is when the stage begins."""
    with mounted(tmp_path / "disk", "size=64m") as disk:
        run = make(disk)
        for stage in STAGES[: STAGES.index(fails)]:
            assert do(run, stage)[0] == 0
        remount(disk, f"size={shutil.disk_usage(disk).used // 1024 + room}k")
        code, log = do(run, fails)
        assert code == 1, log
        assert "Traceback" not in log
        assert "no space left on the disk; make room, then the same command goes on" in log.splitlines()[-1]
        assert not run.stage(fails).exists()
        last = list(run.read_events())[-1]
        assert (last["event"], last["exit_code"]) == ("stage_failed", 1)
        assert "no space left" in last["error"]
        remount(disk, "size=64m")
        assert [do(run, stage)[0] for stage in STAGES] == [0, 0, 0]
        assert digests(run) == whole
        assert not list(run.root.rglob("*.tmp"))


def test_a_run_that_may_not_be_written_is_a_wrong_request(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=64m") as disk:
        run = make(disk)
        remount(disk, "ro")
        command = [sys.executable, "-m", "recipes.run_stage", str(run.root), "problems"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {run.root}")
    assert "a read-only file system; name a place where you may read and write" in line


def test_half_an_event_is_taken_back(tmp_path: Path) -> None:
    """A log of events on a full disk keeps whole lines only; the process is told."""
    run = RunDirectory(tmp_path / "run")
    run.record("began", "s" * 65_460)
    script = (
        "import sys; from pathlib import Path; from recipes.run_directory import RunDirectory\n"
        "try: RunDirectory(Path(sys.argv[1])).record('more', 'stage')\n"
        "except OSError as error: sys.exit(error.errno)"
    )
    command = [sys.executable, "-c", script, str(run.root)]
    before = run.events.read_bytes()
    assert (1 << 16) - 50 < len(before) < 1 << 16  # room for half of the next
    done = subprocess.run(command, cwd=ROOT, check=False, preexec_fn=small_files)
    assert done.returncode == 28
    assert run.events.read_bytes() == before
    run.record("more", "stage")
    assert [event["event"] for event in read_jsonl(run.events)] == ["began", "more"]
