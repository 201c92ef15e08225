"""Whether a job goes on: what the run's events say of it, and what a failure's log calls for."""

from pathlib import Path

import pytest

from recipes.run_directory import RunDirectory
from slurm.commands import seconds_of
from slurm.healing import History, after_failure, may_go_on
from slurm.site import Retries


def run_with(tmp_path: Path, *events: tuple[str, dict[str, object]]) -> RunDirectory:
    run = RunDirectory(tmp_path)
    for event, details in events:
        run.record(event, None, **details)
    return run


@pytest.mark.parametrize("part", [None, 4])
def test_budgets_start_afresh_with_a_new_submission(part: int | None, tmp_path: Path) -> None:
    mine = {"job": "a"} | ({} if part is None else {"part": part})
    ended = ("attempt_ended", {**mine, "reason": "time_limit", "requeued": True})
    other = ("attempt_ended", {"job": "a", "part": 5, "reason": "time_limit", "requeued": True})
    run = run_with(tmp_path, ended, ended, other)
    assert History.read(run, "a", part).reasons == {"time_limit": 2}
    run.record("job_submitted", None, job="a", id="9")
    assert not History.read(run, "a", part).reasons


def test_a_node_is_bad_after_its_second_failure_whichever_job_met_it(tmp_path: Path) -> None:
    run = run_with(tmp_path, ("attempt_ended", {"job": "a", "reason": "node_fail", "bad_nodes": ["n1", "n2"]}))
    history = History.read(run, "b", None)
    assert history.bad_nodes() == set()
    assert history.bad_nodes(["n2"]) == {"n2"}


@pytest.mark.parametrize(
    ("code", "said", "text", "cause", "goes_on", "blamed"),
    [
        (2, "stages.x: no such key", "", "config_error", False, []),
        (1, None, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n", "cuda_oom", False, []),
        (137, None, "srun: error: n1: task 0: Killed\n", "killed", True, []),
        (1, None, "n1: NVRM: Xid (PCI:0000:1b:00): 79, GPU has fallen off the bus.\n", "gpu_hardware", True, ["n1"]),
        (1, None, "RDMA device lost\n", "unknown", True, []),  # a guess, which blames no node
    ],
)  # fmt: skip
def test_what_a_failure_calls_for(
    code: int, said: str | None, text: str, cause: str, goes_on: bool, blamed: list[str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_text("CUDA out of memory in an attempt before\n" + text)
    decision = after_failure(code, said, log, len(log.read_bytes()) - len(text), ["n1"])
    assert (decision.reason.cause, decision.nodes) == (cause, blamed)
    assert (may_go_on(decision, History(), Retries()) is None) is goes_on


def test_a_budget_that_is_spent_is_said(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("")
    decision = after_failure(137, None, log, 0, ["n1"])
    history = History()
    history.close("killed", [])
    refusal = may_go_on(decision, history, Retries())
    assert refusal is not None
    assert refusal.endswith("it went on 1 times already (retries.killed)")


@pytest.mark.parametrize(
    ("said", "seconds"), [("1-02:03:04", 93784.0), ("03:04", 184.0), ("INVALID", 0.0), ("UNLIMITED", None)]
)
def test_what_squeue_prints_of_the_time_that_is_left(said: str, seconds: float | None) -> None:
    assert seconds_of(said) == seconds
