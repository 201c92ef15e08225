"""Which of a stage's processes this is. A parallel stage runs as one process for each GPU, and the first of them alone
publishes; `run_stage` and the engines that run in parallel ask here.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from reasonforge.errors import RequestError

_SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
_TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_FIRST_PORT, _PORTS = 20000, 10000


@dataclass(frozen=True)
class Rank:
    """A process among those that do one stage together."""

    number: int = 0
    """Of all, from 0."""
    size: int = 1
    """How many there are."""
    local: int = 0
    """Of those on its node, from 0; also the number of its GPU."""
    nodes: int = 1
    """Nodes that they run on, as many processes on each."""

    @property
    def first(self) -> bool:
        """Whether this is the one that publishes."""
        return self.number == 0

    @property
    def node(self) -> int:
        """The node that it is on, from 0."""
        return self.number // self.per_node

    @property
    def per_node(self) -> int:
        """Processes on each node."""
        return self.size // self.nodes


ALONE = Rank()


def find_rank(environment: Mapping[str, str] = os.environ) -> Rank:
    """This process's rank: from srun's variables, else from those of torchrun, else it is alone.

    A batch script has Slurm's variables too, but is no step: only a step has SLURM_STEP_NUM_TASKS.
    Raises RequestError where the variables contradict each other.
    """
    if "SLURM_STEP_NUM_TASKS" in environment and all(name in environment for name in _SLURM):
        nodes = environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", "1"))
        return _rank(environment, _SLURM, nodes)
    if "RANK" in environment and "WORLD_SIZE" in environment:
        size, local = (
            int(environment["WORLD_SIZE"]),
            int(environment.get("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"])),
        )
        return _rank(environment, _TORCH, str(-(-size // local)))
    return ALONE


def meeting_point(rank: Rank, environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Host and TCP port where the processes find each other, the same for all of them.

    MASTER_ADDR and MASTER_PORT where they are given; else, under srun, the first node and a port made of the job's and
    the step's numbers. A process that is alone gets port 0: any that is free.
    Raises RequestError where several processes are given no port.
    """
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    host = environment.get("MASTER_ADDR") or (first_node(nodes) if nodes else "127.0.0.1")
    if rank.size == 1:
        return "127.0.0.1", 0
    if "MASTER_PORT" in environment:
        return host, int(environment["MASTER_PORT"])
    if "SLURM_JOB_ID" not in environment:
        raise RequestError("MASTER_PORT", f"not set, with {rank.size} processes", "start them with torchrun or srun")
    job, step = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_STEP_ID", "0"))
    return host, _FIRST_PORT + (job * 7 + step) % _PORTS


def first_node(nodes: str) -> str:
    """The first of Slurm's compressed list of nodes: `gpu[003-010,012],login1` begins with gpu003."""
    match = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\])?([^,\[]*)", nodes)
    return "".join(part or "" for part in match.groups()) if match else nodes


def _rank(environment: Mapping[str, str], names: tuple[str, str, str], nodes: str) -> Rank:
    number, size, local = (int(environment.get(name, "0")) for name in names)
    found = Rank(number, size, local, int(nodes))
    if not (0 <= number < size and size % found.nodes == 0 and 0 <= local < found.per_node):
        said = ", ".join(f"{name}={environment.get(name)}" for name in names)
        raise RequestError(said, f"no rank of {size} processes on {nodes} nodes", "start as many on every node")
    return found
