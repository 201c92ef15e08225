"""The stage `distill` with the `nemo` engine, as real processes of the real NeMo on the CPU: killed, told to stop,
resumed, and shared by two processes in every way that the CPU can: tensors, layers, batches.
"""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from desk import QUIET, until
from nemo_place import ROOT, nemo_python, start_nemo
from nemo_runs import SHAPE, load, metrics, traces
from stage_runs import STEPS, Place, check_stopped_killed_and_torn, checkpoints, events, steps_done

from reasonforge import artifacts
from recipes.engines.scratch import TinyModel
from recipes.interruption import EXIT_INTERRUPTED
from recipes.run_directory import RunDirectory
from recipes.run_stage import run_stage

pytestmark = pytest.mark.xdist_group("nemo")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    nemo_python()
    root = tmp_path_factory.mktemp("nemo-stage")
    turns = [(row["prompt"], row["response"]) for row in traces(100)]
    TinyModel(**{**SHAPE, "layers": 4}).build(turns, root / "model", seed=0)  # for two stages of two chunks each
    return Place(root, root / "model", "nemo", "nemo", start_nemo)


@pytest.fixture(scope="module")
def whole(place: Place) -> RunDirectory:
    """A run whose training nobody disturbed."""
    run = place.run("whole")
    place.finish(run)
    run_stage(run, "export")
    return run


def test_the_result_goes_home_to_hugging_face(whole: RunDirectory) -> None:
    receipt = artifacts.verify(whole.stage("distill")).receipt
    assert receipt.kind == "megatron_checkpoint"
    assert receipt.counts["steps"] == STEPS
    assert receipt.environment["packages"]["nemo_toolkit"] == "2.7.3"
    before, after = load(whole.stage("base")), load(whole.stage("export"))
    moved = [
        (one - other).abs().max().item() for one, other in zip(before.parameters(), after.parameters(), strict=True)
    ]
    assert min(moved) > 0
    assert all(torch.isfinite(parameter).all() for parameter in after.parameters())
    losses = metrics(whole.stage("distill"))
    assert len(losses) == STEPS
    assert losses[-1] < losses[0] / 2


def test_what_is_logged_and_profiled_is_kept(place: Place) -> None:
    profile = {"type": "torch", "first_step": 3, "last_step": 4}
    run = place.run("recorded", steps=8, log_to=["tensorboard", "wandb"], profile=profile)
    assert place.start(run, WANDB_MODE="offline").wait() == 0, place.log(run).read_text()[-6000:]
    out = run.stage("distill")
    artifacts.verify(out)
    assert len(list(out.glob("tensorboard/events.*"))) == 1
    assert [path.stat().st_size > 1000 for path in out.glob("wandb/offline-run-*/run-*.wandb")] == [True]
    (trace,) = out.glob("profile/device/*.json")
    assert any(event.get("name") == "aten::mm" for event in json.loads(trace.read_text())["traceEvents"])


def test_stopped_killed_and_torn_it_ends_as_if_nothing_had_been(place: Place, whole: RunDirectory) -> None:
    check_stopped_killed_and_torn(place, whole)


def test_two_processes_share_every_matrix(place: Place, whole: RunDirectory) -> None:
    """Tensor parallelism of 2: the losses of one process, published once."""
    run = place.run("shared", parallelism={"tensor": 2})
    both = place.start_two(run)
    assert [process.wait() for process in both] == [0, 0], place.log(run).read_text()[-6000:]
    assert events(run) == ["stage_started", "stage_finished"]
    one, two = metrics(whole.stage("distill")), metrics(artifacts.verify(run.stage("distill")).path)
    assert len(two) == STEPS
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-4
    run_stage(run, "export")
    pairs = zip(load(whole.stage("export")).parameters(), load(run.stage("export")).parameters(), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) < 1e-3
    for rank in range(2):  # done already: no NeMo is needed to find that
        again = [sys.executable, "-m", "recipes.run_stage", str(run.root), "distill"]
        shared = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        assert subprocess.run(again, cwd=ROOT, env={**os.environ, **QUIET, **shared}, check=False).returncode == 0
    assert events(run) == ["stage_started", "stage_finished"]


def test_two_processes_share_the_layers_in_turns(place: Place, whole: RunDirectory) -> None:
    """Pipeline parallelism of 2, interleaved, four micro-batches in flight: the losses and gradients of one process,
    though only the last stage knows the loss, and its model, though both hold the tied embedding. The plain schedule is
    in the tests of the stage with the other engine."""
    layout = {"pipeline": 2, "virtual_pipeline": 2}
    run = place.run("layers", parallelism=layout, micro_batch_size=2)
    both = place.start_two(run)
    assert [process.wait() for process in both] == [0, 0], place.log(run).read_text()[-6000:]
    published = artifacts.verify(run.stage("distill")).path
    losses, norms = ((metrics(whole.stage("distill"), key), metrics(published, key)) for key in ("loss", "grad_norm"))
    assert len(losses[1]) == STEPS
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 1e-4
    assert max(abs(a / b - 1) for a, b in zip(*norms, strict=True)) < 1e-3
    run_stage(run, "export")
    pairs = zip(load(whole.stage("export")).parameters(), load(run.stage("export")).parameters(), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) < 1e-3


def test_processes_come_and_go(place: Place, whole: RunDirectory) -> None:
    """Begun by one process, resumed by two that share the batches, finished by one: the optimizer's state goes along.
    A signal to either of two stops both, with the same exit code; the death of one ends the other by itself."""
    run = place.run("halves", micro_batch_size=4)
    alone = place.start(run)
    until(lambda: steps_done(run) >= 5 or alone.poll() is not None)
    alone.send_signal(signal.SIGTERM)
    assert alone.wait() == EXIT_INTERRUPTED, place.log(run).read_text()[-6000:]
    begun = checkpoints(run)[-1]

    both = place.start_two(run)
    until(lambda: steps_done(run) >= begun + 5 or both[0].poll() is not None)
    both[1].send_signal(signal.SIGUSR2)
    assert [process.wait() for process in both] == [EXIT_INTERRUPTED] * 2, place.log(run).read_text()[-6000:]
    assert events(run) == ["stage_started", "stage_interrupted"] * 2
    stopped = checkpoints(run)[-1]
    assert stopped >= begun + 5

    both = place.start_two(run)
    until(lambda: steps_done(run) >= stopped + 5 or both[0].poll() is not None)
    both[1].kill()
    assert both[0].wait() == 1
    assert not run.stage("distill").exists()

    published = place.finish(run)  # alone: the optimizer's state of two goes on in one
    one, other = metrics(whole.stage("distill")), metrics(published.path)
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-4
