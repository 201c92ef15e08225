"""Runs through a real Slurm: submitted as a user does, interrupted in every way that Slurm knows, and nothing lost."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from desk import Desk
from slurm_cluster.cluster import Cluster

pytestmark = pytest.mark.xdist_group("slurm")

SITE = """\
name: tests
partitions:
  batch: {nodes: 4, gpus_per_node: 8, gpu_type: h100, gpu_memory_gb: 80, cpus_per_node: 64, memory_gb: 500}
  low: {nodes: 4, gpus_per_node: 8, gpu_type: h100, cpus_per_node: 64, memory_gb: 500}
cpu_partition: batch
gpu_partition: batch
save_s: 20
"""

CHAIN = """\
name: chain
seed: 3
stages:
  problems:
    type: problems
    source: {type: running_sum, train: 1000, eval: 20}
  generate:
    type: generate
    inputs: {problems: problems}
    engine: {type: programmatic}
    resources: {array: 3, gpus_per_node: 2}
  curate:
    type: curate
    inputs: {traces: generate, problems: problems}
    grader: {type: exact}
"""

LONG = """\
name: long
seed: 1
stages:
  problems:
    type: problems
    source: {type: running_sum, train: 60, eval: 5}
  base:
    type: base_model
    inputs: {problems: problems}
    source:
      type: scratch
      model: {layers: 1, hidden_size: 32, ffn_size: 64}
      training: {type: trl, steps: 1200, learning_rate: 1e-3, batch_size: 8, save_every: 100000, log_every: 1000}
    resources: {hours: 0.1}
"""


class ClusterDesk(Desk):
    """A user at a login node of the cluster."""

    def __init__(self, root: Path, cluster: Cluster):
        root.mkdir(exist_ok=True)
        super().__init__(root)
        self.cluster = cluster
        os.environ["SLURM_CONF"] = cluster.environment["SLURM_CONF"]
        self.write("site.yaml", SITE)
        self.write("chain.yaml", CHAIN)

    def submit(self, recipe: str, *arguments: str) -> dict[str, str]:
        """Submit a recipe; Slurm's ids by job."""
        found: dict[str, str] = json.loads(self.good("submit", recipe, "--site", "site.yaml", "--json", *arguments))
        return found

    def wait(self, run: str, exit_code: int = 0) -> dict[str, dict[str, Any]]:
        """Wait until nothing of a run is queued; the stages' entries by name."""
        done = self("status", run, "--wait", "--every", "0.5", "--json")
        assert done.returncode == exit_code, done.stdout + done.stderr + self.logs(run)
        self.cluster.wait_for(lambda: not self.cluster.run(["squeue", "--noheader"]).stdout, "empty queue")
        return {entry["stage"]: entry for entry in json.loads(done.stdout)}

    def logs(self, run: str) -> str:
        paths = sorted([*self.run(run).glob("logs/*.log"), *self.run(run).glob("slurm/*.out")])
        return "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in paths)

    def attempts(self, run: str, job: str) -> list[tuple[str, bool]]:
        """How each attempt of a job ended, and whether it was requeued."""
        return [
            (event["reason"], bool(event.get("requeued")))
            for event in self.events(run)
            if event["event"] == "attempt_ended" and event["job"] == job
        ]

    def trained(self, run: str) -> int:
        """Steps that the training has done."""
        try:
            progress = json.loads((self.run(run) / "logs/base.progress.json").read_text())
        except FileNotFoundError:
            return 0
        return int(progress["done"]) if progress["title"] == "training" else 0


@pytest.fixture
def place(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterDesk]:
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    found = ClusterDesk(tmp_path / "a user's own place", cluster)
    yield found
    found.clean()


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


def start_long(place: ClusterDesk, partition: str = "batch") -> tuple[str, int]:
    """Submit the long training and halt its process in the middle; the ids of its job and of the process.

    Halted, it lets the fault come however slow Slurm or fast the machine is; `go_on` lets it take the signal.
    """
    place.write("long.yaml", LONG)
    place.write("site.yaml", SITE.replace("cpu_partition: batch", f"cpu_partition: {partition}"))
    job = place.submit("long.yaml")["base"]
    place.cluster.wait_for(lambda: place.trained("long") > 20, "training", 120)
    process = stage_process(place.run("long"), "base")
    os.kill(process, signal.SIGSTOP)
    return job, process


def go_on(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)


def was_sent(process: int, number: signal.Signals) -> bool:
    """Whether a signal waits for a halted process, or has got it going (Slurm wakes those that it ends)."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return True
    masks = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (number - 1) & 1 for mask in masks) or "\nState:\tT" not in status


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the model that the long training makes without Slurm and without interruption."""
    local = Desk(tmp_path_factory.mktemp("local"))
    local.write("long.yaml", LONG)
    local.good("run", "long.yaml")
    return weights(local)


def weights(desk: Desk) -> str:
    receipt = json.loads((desk.run("long") / "stages/base/receipt.json").read_text())
    found: str = receipt["files"]["model.safetensors"]["sha256"]
    return found


def test_time_limit_saves_requeues_and_ends_the_work(place: ClusterDesk, long_model: str) -> None:
    job, process = start_long(place)
    place.cluster.expire(job, 25)
    place.cluster.wait_for(lambda: was_sent(process, signal.SIGUSR2), "SIGUSR2", 120)
    go_on(process)
    place.wait("long")
    assert place.attempts("long", "base") == [("time_limit", True), ("done", False)]
    assert [event["event"] for event in place.events("long")].count("stage_interrupted") == 1
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


def stage_process(run: Path, stage: str) -> int:
    """The process of a stage, which is neither srun nor slurmstepd."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if command[1:3] == ["-m", "recipes.run_stage"] and command[3:5] == [str(run), stage]:
            return int(folder.name)
    raise AssertionError(f"no process of {stage}")


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
