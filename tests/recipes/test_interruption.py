"""A stage that is told to stop saves itself, exits with 85, and the next attempt ends as if nothing had been."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from desk import QUIET, until

from reasonforge import artifacts
from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl
from recipes.interruption import EXIT_INTERRUPTED
from recipes.recipe import Recipe, save_resolved
from recipes.run_directory import RunDirectory
from recipes.run_stage import run_part, run_stage

ROOT = Path(__file__).parents[2]
TINY = {
    "type": "scratch",
    "model": {"layers": 1, "hidden_size": 32, "ffn_size": 64},
    "training": {"type": "trl", "steps": 600, "learning_rate": 1e-3, "batch_size": 8, "save_every": 1000},
}


def make_run(root: Path) -> RunDirectory:
    run = RunDirectory(root)
    stages = {
        "problems": {"type": "problems", "source": {"type": "running_sum", "train": 60, "eval": 5}},
        "base": {"type": "base_model", "inputs": {"problems": "problems"}, "source": TINY},
    }
    save_resolved(Recipe.model_validate({"name": "r", "seed": 1, "stages": stages}), run.recipe)
    run_stage(run, "problems")
    return run


def start(run: RunDirectory, stage: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "recipes.run_stage", str(run.root), stage],
        cwd=ROOT,
        env={**os.environ, **QUIET},
        stderr=subprocess.DEVNULL,
    )


def steps_done(run: RunDirectory) -> int:
    progress = run.read_progress("base") or {}
    return int(progress["done"]) if progress.get("title") == "training" else 0


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_training_saves_the_step_it_is_at(number: signal.Signals, tmp_path: Path) -> None:
    """Its own checkpoints are a thousand steps apart, so whatever it goes on from was saved because of the signal."""
    whole, broken = make_run(tmp_path / "whole"), make_run(tmp_path / "broken")
    run_stage(whole, "base")
    process = start(broken, "base")
    until(lambda: steps_done(broken) > 9)
    process.send_signal(number)
    assert process.wait(60) == EXIT_INTERRUPTED
    events = [event["event"] for event in broken.read_events()]
    assert events[-1] == "stage_interrupted"
    assert not broken.stage("base").exists()
    (checkpoint,) = broken.work("base").glob("*/scratch/trainer/checkpoint-*")
    assert 9 < int(checkpoint.name.rpartition("-")[2]) < 600
    run_stage(broken, "base")
    one, other = (artifacts.load(run.stage("base")).receipt for run in (whole, broken))
    assert one.files["model.safetensors"] == other.files["model.safetensors"]
    assert other.cost.attempt == 2


def generation(root: Path, array: int, engine: dict[str, object]) -> RunDirectory:
    run = RunDirectory(root)
    stages = {
        "problems": {"type": "problems", "source": {"type": "running_sum", "train": 50, "eval": 5}},
        "base": {
            "type": "base_model",
            "inputs": {"problems": "problems"},
            "source": {**TINY, "training": {"type": "trl", "steps": 1, "learning_rate": 1e-3}},
        },
        "generate": {
            "type": "generate",
            "inputs": {"problems": "problems", **({"teacher": "base"} if engine["type"] == "hf" else {})},
            "engine": engine,
            "sampling": {"samples": 2, "max_tokens": 12},
            "resources": {"array": array},
        },
    }
    save_resolved(Recipe.model_validate({"name": "r", "seed": 1, "stages": stages}), run.recipe)
    for stage in ("problems", *(["base"] if engine["type"] == "hf" else [])):
        run_stage(run, stage)
    return run


@pytest.mark.parametrize(
    "engine", [{"type": "programmatic"}, {"type": "hf", "batch_size": 7}], ids=lambda it: it["type"]
)
def test_parts_make_what_one_job_makes(
    engine: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.generation.hf.WINDOW", 16)
    one = generation(tmp_path / "one", 1, engine)
    run_stage(one, "generate")
    for array in (3, 60):
        many = generation(tmp_path / f"{array}", array, engine)
        for part in range(0, array, 2):  # what no part did, the end does
            run_part(many, "generate", part)
        run_stage(many, "generate")
        digests = [artifacts.load(run.stage("generate")).digest for run in (one, many)]
        assert digests[0] == digests[1]
        run_part(many, "generate", 0)  # one that comes late finds the stage done
    assert len(list(read_jsonl(one.stage("generate") / "traces.jsonl"))) == 100


def test_what_cannot_be_divided_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(RequestError, match=r"stage base: a base_model stage cannot be divided"):
        run_part(run, "base", 0)
    with pytest.raises(RequestError, match=r"no part 1; its resources.array makes parts 0 to 0"):
        run_part(run, "base", 1)
