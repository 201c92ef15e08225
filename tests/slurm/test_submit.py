"""Runs through a real Slurm: submitted as a user does, interrupted in every way that Slurm knows, and nothing lost."""

import json
import os
import signal
import time

import pytest
from cluster_desk import CHAIN, ClusterDesk, go_on, start_long, was_sent, weights
from desk import Desk

pytestmark = pytest.mark.xdist_group("slurm")


@pytest.fixture(scope="module")
def chain_digests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the chain makes on one machine, without Slurm."""
    local = Desk(tmp_path_factory.mktemp("local"))
    local.write("chain.yaml", CHAIN)
    local.good("run", "chain.yaml")
    return local.digests("chain")


def test_a_chain_with_an_array_makes_what_one_machine_makes(place: ClusterDesk, chain_digests: dict[str, str]) -> None:
    """From a directory with spaces and a quote in its name."""
    ids = place.submit("chain.yaml")
    assert list(ids) == ["problems", "generate.parts", "generate", "curate"]
    entries = place.wait("chain")
    assert {entry["state"] for entry in entries.values()} == {"done"}
    assert place.digests("chain") == chain_digests
    for job in place.run("chain").glob("slurm/scripts/*.sbatch"):
        sent = place.cluster.run(["scontrol", "write", "batch_script", ids[job.stem], "-"]).stdout
        assert sent == job.read_text(), job
    dry = place.root / "dry"
    place.good("submit", "chain.yaml", "--site", "site.yaml", "--dry-run", "--scripts", str(dry))
    for job in dry.iterdir():
        assert job.read_text() == (place.run("chain") / "slurm/scripts" / job.name).read_text()
    assert place.good("submit", "chain.yaml", "--site", "site.yaml") == "run chain: every stage is done\n"


def test_an_array_of_fifty(place: ClusterDesk, chain_digests: dict[str, str]) -> None:
    place.submit("chain.yaml", "--set", "stages.generate.resources.array=50")
    place.wait("chain")
    assert place.digests("chain") == chain_digests
    finished = [event["part"] for event in place.events("chain") if event["event"] == "part_finished"]
    assert sorted(finished) == list(range(50))


def test_time_limit_saves_requeues_and_ends_the_work(place: ClusterDesk, long_model: str) -> None:
    job, process = start_long(place)
    place.cluster.limit(job, 75)  # within 135 s; the signal is due 120 s before, and comes when slurmctld looks
    place.cluster.wait_for(lambda: was_sent(process, signal.SIGUSR2), "SIGUSR2", 120)
    go_on(process)
    place.cluster.extend_when_requeued(job, 30)
    place.wait("long")
    assert place.attempts("long", "base") == [("time_limit", True), ("done", False)]
    assert [event["event"] for event in place.events("long")].count("stage_interrupted") == 1
    assert weights(place) == long_model


def test_a_time_limit_that_comes_before_the_stage_has_saved(place: ClusterDesk, long_model: str) -> None:
    job, _ = start_long(place)
    place.cluster.expire(job, 1)
    place.cluster.extend_when_requeued(job, 30)
    place.wait("long")
    assert place.attempts("long", "base") == [("time_limit", True), ("done", False)]
    assert weights(place) == long_model


def test_a_controller_that_is_away_when_the_stage_has_saved(place: ClusterDesk, long_model: str) -> None:
    _, process = start_long(place)
    place.cluster.stop_controller()
    os.kill(process, signal.SIGUSR2)
    go_on(process)
    place.cluster.wait_for(
        lambda: "stage_interrupted" in [event["event"] for event in place.events("long")], "a saved stage", 120
    )
    time.sleep(15)  # until the job has asked, and nobody answered
    place.cluster.start_controller()
    place.wait("long")
    assert place.attempts("long", "base") == [("preempted", True), ("done", False)]
    assert weights(place) == long_model


@pytest.mark.parametrize("told", [True, False], ids=["with the user signal", "without it"])
def test_preemption(told: bool, place: ClusterDesk, long_model: str) -> None:
    if not told:
        place.cluster.reconfigure(preempt_send_user_signal=False)
    _, process = start_long(place, "low")
    other = place.cluster.submit("--partition=high", "--nodes=4", "--exclusive", script="sleep 1")
    place.cluster.wait_for(lambda: was_sent(process, signal.SIGUSR2 if told else signal.SIGTERM), "a signal", 120)
    go_on(process)
    place.cluster.wait_state(other, "COMPLETED", timeout_s=120)
    place.wait("long")
    assert place.attempts("long", "base") == [("preempted", True), ("done", False)]
    assert [event["event"] for event in place.events("long")].count("stage_interrupted") == 1
    assert weights(place) == long_model


def test_cancelled_it_stays_cancelled_and_resume_goes_on(place: ClusterDesk, long_model: str) -> None:
    _, process = start_long(place)
    told = place.good("cancel", "long")
    assert told.startswith("cancelled: ")
    go_on(process)
    entries = place.wait("long", exit_code=1)
    assert (entries["problems"]["state"], entries["base"]["state"]) == ("done", "cancelled")
    assert place.good("cancel", "long") == "nothing of it is in the queue\n"
    ids = json.loads(place.good("resume", "long", "--json"))
    assert list(ids) == ["base"]
    place.wait("long")
    assert weights(place) == long_model


def test_a_node_set_down_under_a_job(place: ClusterDesk, long_model: str) -> None:
    job, process = start_long(place)
    place.cluster.down_node(node_of(place, job), "a test")
    go_on(process)
    place.wait("long")
    assert place.attempts("long", "base") == [("node_fail", True), ("done", False)]
    assert weights(place) == long_model


def node_of(place: ClusterDesk, job: str) -> str:
    return place.cluster.run(["squeue", "--noheader", f"--jobs={job}", "--format=%N"]).stdout.strip()


def test_slurmd_killed_and_back(place: ClusterDesk, long_model: str) -> None:
    job, process = start_long(place)
    node = node_of(place, job)
    place.cluster.stop_node(node)
    place.cluster.start_node(node)
    go_on(process)
    place.wait("long")
    assert weights(place) == long_model
    assert place.attempts("long", "base") == [("done", False)]


def test_slurmctld_restarted_under_a_run(place: ClusterDesk, long_model: str) -> None:
    _, process = start_long(place)
    place.cluster.restart_controller()
    go_on(process)
    place.wait("long")
    assert weights(place) == long_model
    assert place.attempts("long", "base") == [("done", False)]


def test_a_stage_that_is_killed_goes_on_once(place: ClusterDesk, long_model: str) -> None:
    _, process = start_long(place)
    os.kill(process, signal.SIGKILL)
    place.wait("long")
    assert place.attempts("long", "base") == [("killed", True), ("done", False)]
    assert weights(place) == long_model


def test_a_failed_stage_stops_what_needs_it_and_is_named(place: ClusterDesk) -> None:
    place.write("bad.jsonl", '{"question": "1+1", "answer": "2"}\n')
    place.write(
        "bad.yaml",
        CHAIN.replace("name: chain", "name: bad").replace(
            "{type: running_sum, train: 1000, eval: 20}",
            "{type: file, path: bad.jsonl, prompt_column: absent, eval_count: 1}",
        ),
    )
    place.submit("bad.yaml")
    entries = place.wait("bad", exit_code=1)
    assert entries["problems"]["state"] == "failed"
    assert "absent" in entries["problems"]["error"]
    for name in ("generate", "curate"):
        assert entries[name]["state"] == "cancelled"
        assert entries[name]["error"] == "needs problems, which failed"
    assert place.attempts("bad", "problems")[0][1] is False


def test_two_submits_at_once(place: ClusterDesk) -> None:
    both = [place.start("submit", "chain.yaml", "--site", "site.yaml") for _ in range(2)]
    said = [process.communicate() for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    refusal = next(errors for process, (_, errors) in zip(both, said, strict=True) if process.returncode)
    assert "another reasonforge is running here" in refusal or "this run is in the queue" in refusal
    place.wait("chain")
    started = [event for event in place.events("chain") if event["event"] == "stage_started"]
    assert sorted(event["stage"] for event in started) == ["curate", "generate", "problems"]


def test_a_submit_that_is_killed_leaves_nothing_that_runs(place: ClusterDesk) -> None:
    for delay in (0.5, 0.7, 0.9):
        process = place.start("submit", "chain.yaml", "--site", "site.yaml")
        time.sleep(delay)
        process.kill()
        process.communicate()
    place.good("cancel", "chain") if (place.run("chain") / "slurm/jobs.json").exists() else None
    place.submit("chain.yaml")
    place.wait("chain")
    started = [event["stage"] for event in place.events("chain") if event["event"] == "stage_started"]
    assert sorted(started) == ["curate", "generate", "problems"]
    assert place.cluster.run(["squeue", "--noheader"]).stdout == ""
