"""A user's desk at a login node of the real cluster, and a training that is halted while faults are put upon it."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from desk import Desk
from slurm_cluster.cluster import Cluster

SITE = """\
name: tests
partitions:
  batch: {nodes: 4, gpus_per_node: 8, gpu_type: h100, gpu_memory_gb: 80, cpus_per_node: 64, memory_gb: 500}
  low: {nodes: 4, gpus_per_node: 8, gpu_type: h100, cpus_per_node: 64, memory_gb: 500}
cpu_partition: batch
gpu_partition: batch
save_s: 90
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

    def halted(self, run: str, stage: str) -> int:
        """Wait until a stage trains, and halt its process; its id."""
        (self.run(run) / f"logs/{stage}.progress.json").unlink(missing_ok=True)
        self.cluster.wait_for(lambda: self.trained(run, stage) > 20, "training", 120)
        process = stage_process(self.run(run), stage)
        os.kill(process, signal.SIGSTOP)
        return process

    def trained(self, run: str, stage: str) -> int:
        """Steps that a stage's training has done."""
        try:
            progress = json.loads((self.run(run) / f"logs/{stage}.progress.json").read_text())
        except FileNotFoundError:
            return 0
        return int(progress["done"]) if progress["title"] == "training" else 0


def start_long(place: ClusterDesk, partition: str = "batch", site: str = SITE) -> tuple[str, int]:
    """Submit the long training and halt its process in the middle; the ids of its job and of the process.

    Halted, it lets the fault come however slow Slurm or fast the machine is; `go_on` lets it take the signal.
    """
    place.write("long.yaml", LONG)
    place.write("site.yaml", site.replace("cpu_partition: batch", f"cpu_partition: {partition}"))
    job = place.submit("long.yaml")["base"]
    return job, place.halted("long", "base")


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


def weights(desk: Desk) -> str:
    receipt = json.loads((desk.run("long") / "stages/base/receipt.json").read_text())
    found: str = receipt["files"]["model.safetensors"]["sha256"]
    return found


def stage_process(run: Path, stage: str) -> int:
    """A process of a stage, which is neither srun nor slurmstepd."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        program = Path(command.split("\0")[0]).name
        if program.startswith("python") and f"\0recipes.run_stage\0{run}\0{stage}\0" in command:
            return int(folder.name)
    raise AssertionError(f"no process of {stage}")
