"""The stage `distill` with the `megatron_bridge` engine, as real processes of the real Megatron-Bridge on the CPU:
killed, told to stop, resumed, and shared by two processes that divide tensors, layers or batches.
"""

import signal

import pytest
import torch
from bridge_place import bridge_python, start_bridge
from desk import until
from nemo_runs import SHAPE, load, metrics, traces
from stage_runs import STEPS, Place, change_engine, check_stopped_killed_and_torn, events, steps_done

from reasonforge import artifacts
from recipes.engines.scratch import TinyModel
from recipes.interruption import EXIT_INTERRUPTED
from recipes.run_directory import RunDirectory
from recipes.run_stage import run_stage

pytestmark = pytest.mark.xdist_group("bridge")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    bridge_python()
    root = tmp_path_factory.mktemp("bridge-stage")
    turns = [(row["prompt"], row["response"]) for row in traces(100)]
    TinyModel(**{**SHAPE, "layers": 4}).build(turns, root / "model", seed=0)  # for two stages
    return Place(root, root / "model", "megatron_bridge", "bridge", start_bridge)


@pytest.fixture(scope="module")
def whole(place: Place) -> RunDirectory:
    """A run whose training nobody disturbed."""
    run = place.run("whole", validate_every=None)
    place.finish(run)
    run_stage(run, "export")
    return run


def test_the_result_goes_home_to_hugging_face(whole: RunDirectory) -> None:
    receipt = artifacts.verify(whole.stage("distill")).receipt
    assert receipt.kind == "megatron_checkpoint"
    assert receipt.counts["steps"] == STEPS
    before, after = load(whole.stage("base")), load(whole.stage("export"))
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    assert min((one - other).abs().max().item() for one, other in pairs) > 0
    assert all(torch.isfinite(parameter).all() for parameter in after.parameters())
    losses = metrics(whole.stage("distill"))
    assert len(losses) == STEPS
    assert losses[-1] < losses[0] / 2


def test_stopped_killed_and_torn_it_ends_as_if_nothing_had_been(place: Place, whole: RunDirectory) -> None:
    check_stopped_killed_and_torn(place, whole)


def test_two_processes_share_every_matrix_and_then_the_layers(place: Place, whole: RunDirectory) -> None:
    """The losses and gradients of one process, though only the last stage knows the loss, published once; between both
    layouts is a checkpoint that any layout can resume."""
    run = place.run("shared", parallelism={"tensor": 2}, micro_batch_size=2, fully_reshardable=True)
    both = place.start_two(run)
    until(lambda: steps_done(run) >= STEPS / 2 or both[0].poll() is not None)
    both[0].send_signal(signal.SIGTERM)
    assert [process.wait() for process in both] == [EXIT_INTERRUPTED] * 2, place.log(run).read_text()[-6000:]
    assert STEPS / 2 <= steps_done(run) < STEPS
    change_engine(run, parallelism={"pipeline": 2})
    both = place.start_two(run)
    assert [process.wait() for process in both] == [0, 0], place.log(run).read_text()[-6000:]
    assert events(run) == ["stage_started", "stage_interrupted", "stage_started", "stage_finished"]
    published = artifacts.verify(run.stage("distill")).path
    losses, norms = ((metrics(whole.stage("distill"), key), metrics(published, key)) for key in ("loss", "grad_norm"))
    assert len(losses[1]) == STEPS
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 1e-4
    assert max(abs(a / b - 1) for a, b in zip(*norms, strict=True)) < 1e-3
    run_stage(run, "export")
    pairs = zip(load(whole.stage("export")).parameters(), load(run.stage("export")).parameters(), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) < 1e-3


def test_two_are_told_to_stop_and_one_goes_on(place: Place, whole: RunDirectory) -> None:
    """Two processes share the batches: a signal to either stops both, with the same exit code, and one alone resumes
    them."""
    run = place.run("halves", micro_batch_size=4)
    both = place.start_two(run)
    until(lambda: steps_done(run) >= 5 or both[0].poll() is not None)
    both[1].send_signal(signal.SIGUSR2)
    assert [process.wait() for process in both] == [EXIT_INTERRUPTED] * 2, place.log(run).read_text()[-6000:]
    assert events(run) == ["stage_started", "stage_interrupted"]
    published = place.finish(run)
    one, other = metrics(whole.stage("distill")), metrics(published.path)
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-4
