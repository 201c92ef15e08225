"""`reasonforge site probe`: writes a site file from what Slurm says of itself, for a user to look over."""

import math
import re
from collections.abc import Mapping
from typing import Any

import yaml

from reasonforge.errors import RequestError
from reasonforge.processes import finish
from slurm.commands import seconds_of

PATIENCE_S = 30.0
HEAD = """\
# Written by `reasonforge site probe` from what scontrol, sinfo and sacctmgr say. Look it over: Slurm does not know
# the memory of a GPU, the container runtime, nor which partition you like best.
"""


def probe() -> str:
    """The text of a site file for the cluster that this machine belongs to.

    Raises RequestError where Slurm is not here or does not answer.
    """
    config = _pairs(_ask("scontrol", "show", "config"), " = ")
    partitions = [_pairs_of_line(line) for line in _ask("scontrol", "--oneliner", "show", "partition").splitlines()]
    nodes = _nodes()
    accounts = _accounts()
    return render_site(config, partitions, nodes, accounts)


def render_site(
    config: Mapping[str, str],
    partitions: list[dict[str, str]],
    nodes: Mapping[str, dict[str, Any]],
    accounts: list[str],
) -> str:
    """The site as YAML; a pure function of what Slurm said.

    Args:
        config: `scontrol show config`.
        partitions: `scontrol show partition`, one dictionary each.
        nodes: by partition, the smallest of its nodes: cpus, memory_gb, gpus_per_node, gpu_type.
        accounts: of this user, the default one first.
    """
    found: dict[str, Any] = {}
    for partition in partitions:
        if partition.get("State") in ("UP", None) and int(partition.get("TotalNodes", "0")):
            found[partition["PartitionName"]] = _partition(partition, nodes.get(partition["PartitionName"], {}))
    if not found:
        raise RequestError("scontrol show partition", "no partition is up", "ask whoever runs the cluster")
    default = next(
        (p["PartitionName"] for p in partitions if p.get("Default") == "YES" and p["PartitionName"] in found), None
    )
    with_gpus = [name for name, one in found.items() if one.get("gpus_per_node")]
    plain = [name for name in found if name not in with_gpus]
    site: dict[str, Any] = {"name": config.get("ClusterName", "cluster")}
    if accounts:
        site["account"] = accounts[0]
    site["partitions"] = found
    if with_gpus:
        site["gpu_partition"] = default if default in with_gpus else with_gpus[0]
    site["cpu_partition"] = default if default in plain else (plain or list(found))[0]
    site["max_array"] = int(config.get("MaxArraySize", "1001"))
    if config.get("JobRequeue") == "0":
        site["requeue"] = False
    text = HEAD + yaml.safe_dump(site, sort_keys=False)
    return text + _remarks(config, partitions, accounts)


def _remarks(config: Mapping[str, str], partitions: list[dict[str, str]], accounts: list[str]) -> str:
    """What a user should know and no key holds."""
    lines = []
    if config.get("PreemptType", "preempt/none") != "preempt/none":
        mode = config.get("PreemptMode", "")
        told = "preempt_send_user_signal" in config.get("SlurmctldParameters", "")
        lines.append(
            f"# Jobs may be preempted ({config['PreemptType']}, {mode}); a stage saves itself and is requeued."
        )
        if not told:
            grace = {p["PartitionName"]: p.get("GraceTime", "0") for p in partitions if p.get("GraceTime", "0") != "0"}
            said = ", ".join(f"{name} {seconds} s" for name, seconds in grace.items()) or "none"
            lines.append(f"# It is told so by SIGTERM alone; time to save (GraceTime): {said}.")
    if len(accounts) > 1:
        lines.append(f"# Your accounts: {', '.join(accounts)}.")
    return "".join(f"{line}\n" for line in lines)


def _partition(partition: Mapping[str, str], node: Mapping[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {"nodes": int(partition["TotalNodes"])} | dict(node)
    hours = hours_of(partition.get("MaxTime", "UNLIMITED"))
    if hours is not None:
        described["max_hours"] = hours
    if partition.get("MaxNodes", "UNLIMITED").isdigit():
        described["max_nodes"] = int(partition["MaxNodes"])
    if partition.get("OverSubscribe") == "EXCLUSIVE":
        described["whole_nodes"] = True
    return described


def hours_of(limit: str) -> float | None:
    """A time limit of Slurm's (`1-12:00:00`, `30:00`, `UNLIMITED`) in hours; None for none."""
    seconds = seconds_of(limit)
    return None if seconds is None else round(seconds / 3600, 4)


def _nodes() -> dict[str, dict[str, Any]]:
    """By partition, what every one of its nodes has at least."""
    smallest: dict[str, dict[str, Any]] = {}
    for line in _ask("sinfo", "--noheader", "--Node", "--format=%R|%c|%m|%G").splitlines():
        name, cpus, memory, gres = line.strip().split("|")
        gpu_type, gpus = gpus_of(gres)
        here: dict[str, Any] = {"cpus_per_node": int(cpus), "memory_gb": math.floor(int(memory) / 1024 * 10) / 10}
        if gpus:
            here |= {"gpus_per_node": gpus} | ({"gpu_type": gpu_type} if gpu_type else {})
        known = smallest.setdefault(name, here)
        for key in ("cpus_per_node", "memory_gb", "gpus_per_node"):
            if key in known:
                known[key] = min(known[key], here.get(key, 0))
    return smallest


def gpus_of(gres: str) -> tuple[str | None, int]:
    """Type and number of the GPUs in a node's generic resources: `gpu:h100:8(S:0-1)`; (None, 0) without any."""
    found = re.search(r"\bgpu(?::([A-Za-z][\w.-]*))?:(\d+)", gres)
    return (found[1], int(found[2])) if found else (None, 0)


def _accounts() -> list[str]:
    user = _ask("id", "-un").strip()
    done = finish(
        ["sacctmgr", "--noheader", "--parsable2", "show", "user", user, "withassoc", "format=DefaultAccount,Account"],
        PATIENCE_S,
    )
    rows = [line.split("|") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    names = [row[0] for row in rows[:1]] + [row[1] for row in rows]
    return list(dict.fromkeys(name for name in names if name))


def _ask(*command: str) -> str:
    done = finish(command, PATIENCE_S)
    if done.returncode:
        said = " ".join(done.stderr.split())[:200] or f"exit code {done.returncode}"
        raise RequestError(command[0], said, "run this on a machine of the cluster, where Slurm's commands answer")
    return done.stdout


def _pairs(text: str, between: str) -> dict[str, str]:
    rows = (line.partition(between) for line in text.splitlines())
    return {key.strip(): value.strip() for key, found, value in rows if found}


def _pairs_of_line(line: str) -> dict[str, str]:
    return dict(field.split("=", 1) for field in line.split() if "=" in field)
