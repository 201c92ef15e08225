"""What the tests of a training as a stage share: the run around it, its processes, and what they leave behind.

The engines run in the real NeMo and Megatron-Bridge on the CPU: killed, told to stop, resumed, shared by two processes.
"""

import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from desk import QUIET, until
from nemo_runs import OPTIONS, metrics

from reasonforge import artifacts
from recipes.interruption import EXIT_INTERRUPTED
from recipes.recipe import Recipe, load_recipe, save_resolved
from recipes.run_directory import RunDirectory
from recipes.run_stage import open_job, run_stage

STEPS = 40
ENGINE = {**OPTIONS, "steps": STEPS, "save_every": 4}


def make_run(root: Path, model: Path, directory: str, **engine: Any) -> RunDirectory:
    """A run that has done all that comes before the training."""
    run = RunDirectory(root)
    stages = {
        "problems": {"type": "problems", "source": {"type": "running_sum", "train": 200, "eval": 5}},
        "base": {"type": "base_model", "source": {"type": "checkpoint", "path": str(model)}},
        "generate": {"type": "generate", "inputs": {"problems": "problems"}, "engine": {"type": "programmatic"}},
        "curate": {
            "type": "curate",
            "inputs": {"traces": "generate", "problems": "problems"},
            "grader": {"type": "exact"},
        },
        "tokenize": {"type": "tokenize", "inputs": {"dataset": "curate", "model": "base"}, "max_tokens": 200},
        "import": {
            "type": "import_checkpoint", "inputs": {"model": "base"}, "directory": directory, "layer_spec": "local",
            "pad_vocabulary": 4,
        },
        "distill": {
            "type": "distill", "inputs": {"model": "import", "tokens": "tokenize"}, "engine": {**ENGINE, **engine},
        },
        "export": {"type": "export_checkpoint", "inputs": {"checkpoint": "distill"}},
    }  # fmt: skip
    save_resolved(Recipe.model_validate({"name": "r", "seed": 1, "stages": stages}), run.recipe)
    for stage in ("problems", "base", "generate", "curate", "tokenize", "import"):
        run_stage(run, stage)
    return run


def change_engine(run: RunDirectory, **engine: Any) -> None:
    """Give the training of a run other options, none of which changes what comes out."""
    stages = load_recipe(run.recipe).stages
    before = stages["distill"].model_dump(mode="json")
    after = {**before, "engine": {**before["engine"], **engine}}
    recipe = {name: after if name == "distill" else stage.model_dump(mode="json") for name, stage in stages.items()}
    save_resolved(Recipe.model_validate({"name": "r", "seed": 1, "stages": recipe}), run.recipe)


@dataclass
class Place:
    """Where the tests of this file work."""

    root: Path
    model: Path
    engine: str
    directory: str
    begin: Callable[..., "subprocess.Popen[bytes]"]
    """Starts a process of the framework: home, log, arguments, variables."""

    def run(self, name: str, **engine: Any) -> RunDirectory:
        return make_run(self.root / name, self.model, self.directory, type=self.engine, **engine)

    def start(self, run: RunDirectory, **variables: str) -> "subprocess.Popen[bytes]":
        """A process that does the training of a run."""
        arguments = ("-m", "recipes.run_stage", run.root, "distill")
        return self.begin(self.root, self.log(run), *arguments, **QUIET, **variables)

    def start_two(self, run: RunDirectory) -> "list[subprocess.Popen[bytes]]":
        return [self.start(run, **variables) for variables in two_ranks()]

    def log(self, run: RunDirectory) -> Path:
        return self.root / f"{run.name}.log"

    def finish(self, run: RunDirectory) -> artifacts.Artifact:
        process = self.start(run)
        assert process.wait() == 0, self.log(run).read_text()[-6000:]
        return artifacts.verify(run.stage("distill"))


def two_ranks() -> list[dict[str, str]]:
    """The variables of two processes that do one stage together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(2)]


def scratch(run: RunDirectory) -> Path:
    return open_job(run, "distill").workspace / "scratch"


def steps_done(run: RunDirectory) -> int:
    path = scratch(run) / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def checkpoints(run: RunDirectory, *, whole: bool = True) -> list[int]:
    found = (scratch(run) / "checkpoints").glob("step-*")
    return sorted(int(path.name[5:]) for path in found if (path / "complete").exists() or not whole)


def events(run: RunDirectory) -> list[str]:
    return [event["event"] for event in run.read_events() if event.get("stage") == "distill"]


def check_stopped_killed_and_torn(place: Place, whole: RunDirectory) -> None:
    """Told to stop, it saves the step that it is at; killed, it goes on from the last whole checkpoint; a checkpoint
    that a kill cut off is not taken for one. Asynchronous saves, so that some are under way."""
    run = place.run("broken", asynchronous_save=True)
    first = place.start(run)
    until(lambda: steps_done(run) >= 5 or first.poll() is not None)
    first.send_signal(signal.SIGTERM)
    assert first.wait() == EXIT_INTERRUPTED, place.log(run).read_text()[-6000:]
    assert events(run)[-1] == "stage_interrupted"
    stopped = checkpoints(run)[-1]
    assert stopped == steps_done(run) < STEPS

    second = place.start(run)
    until(lambda: steps_done(run) >= stopped + 10 or second.poll() is not None)
    second.kill()
    second.wait()
    kept = checkpoints(run)[-1]
    assert stopped <= kept < STEPS
    torn = scratch(run) / "checkpoints" / f"step-{STEPS:08d}"
    shutil.copytree(scratch(run) / "checkpoints" / f"step-{kept:08d}", torn)
    (torn / "complete").unlink()
    next(torn.rglob(".metadata")).unlink()

    published = place.finish(run)
    assert metrics(published.path) == metrics(whole.stage("distill"))
    assert published.receipt.cost.attempt == 3
    assert published.receipt.counts == artifacts.load(whole.stage("distill")).receipt.counts
