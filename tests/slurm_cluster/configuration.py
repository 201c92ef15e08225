"""The configuration files of a cluster as text; `Cluster` writes them. Pure functions of a `Layout`.

Every line that differs from Slurm's default was needed or makes the tests faster; what differs from a real cluster
is said beside it. Written for Slurm 22.05 (Debian 12); manual: https://slurm.schedmd.com/slurm.conf.html
"""

from dataclasses import dataclass
from pathlib import Path

NODE_CPUS = 64
NODE_MEMORY_MIB = 512_000
GPU_TYPE = "h100"


@dataclass(frozen=True)
class Layout:
    """Where one cluster lives: directory, host name, loopback address and ports; the number of GPUs of a node."""

    root: Path
    host: str
    address: str
    controller_port: int
    database_port: int
    node_ports: tuple[int, ...]
    gpus: int
    preempt_send_user_signal: bool = True

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes: node1, node2, ..."""
        return tuple(f"node{number}" for number in range(1, len(self.node_ports) + 1))

    @property
    def slurm_conf(self) -> Path:
        """What SLURM_CONF names."""
        return self.root / "etc" / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        """Where munged listens."""
        return self.root / "munge" / "socket"

    @property
    def mysql_socket(self) -> Path:
        """Where MariaDB listens."""
        return self.root / "mysql.socket"


def files(layout: Layout) -> dict[str, str]:
    """The text of each file in `etc`, by name."""
    return {"slurm.conf": slurm_conf(layout), "gres.conf": gres_conf(layout), "slurmdbd.conf": slurmdbd_conf(layout)}


def slurm_conf(layout: Layout) -> str:
    """slurm.conf(5): the controller, the nodes, the partitions."""
    user_signal = "SlurmctldParameters=preempt_send_user_signal" if layout.preempt_send_user_signal else ""
    names = ",".join(layout.nodes)
    return f"""\
ClusterName=cluster
SlurmctldHost={layout.host}({layout.address})
SlurmctldPort={layout.controller_port}
SlurmUser=root
SlurmdUser=root
# Listen on the address that the host's name resolves to, which must be loopback, and not on all.
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
# The controller holds a requeued job back for cred_expire + 1 seconds: 121 by default. At 5 the node still said
# "job already running", at 7 not; KillWait is 5.
AuthInfo=socket={layout.munge_socket},cred_expire=8
StateSaveLocation={layout.root}/state
SlurmdSpoolDir={layout.root}/spool/%n
SlurmctldPidFile={layout.root}/run/slurmctld.pid
SlurmdPidFile={layout.root}/run/slurmd.%n.pid
SlurmctldLogFile={layout.root}/log/slurmctld.log
SlurmdLogFile={layout.root}/log/%n.log

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={layout.address}
AccountingStoragePort={layout.database_port}
# Without this, clients look for munge's default socket and hang.
AccountingStoragePass={layout.munge_socket}
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits,qos
AccountingStoreFlags=job_script,job_comment
JobAcctGatherType=jobacct_gather/linux
# No cgroups here: a step over its memory is found by polling and killed. It ends as FAILED with signal 9 and a line
# in its output, where a cluster with cgroups says OUT_OF_MEMORY.
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill

ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
# A node that was lost comes back by itself; one that was set down waits for `scontrol update state=resume`.
ReturnToService=1
# Shorter than on a real cluster (defaults 30, 300, 120, 300): nodes are lost and jobs end sooner.
KillWait=5
SlurmdTimeout=10
SlurmctldTimeout=10
MinJobAge=60
InactiveLimit=0
OverTimeLimit=0
JobRequeue=1
MaxArraySize=1001
EnforcePartLimits=ALL

SchedulerType=sched/backfill
# Defaults: sched_interval 60, bf_interval 30, and a new job waits up to 3 s for others to come.
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,bf_min_age_reserve=1,requeue_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=4000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{user_signal}

GresTypes=gpu
{node_lines(layout)}
PartitionName=DEFAULT Nodes={names} State=UP DefaultTime=10 PreemptMode=OFF PriorityTier=1
PartitionName=batch Default=YES MaxTime=1-00:00:00
PartitionName=short MaxTime=2 DefaultTime=1
PartitionName=low MaxTime=1-00:00:00 PreemptMode=REQUEUE GraceTime=10
PartitionName=high MaxTime=1-00:00:00 PriorityTier=10
"""


def node_lines(layout: Layout) -> str:
    """One host plays all nodes: each slurmd has a name and a port of its own."""
    gres = f" Gres=gpu:{GPU_TYPE}:{layout.gpus}" if layout.gpus else ""
    return "\n".join(
        f"NodeName={name} NodeHostname={layout.host} NodeAddr={layout.address} Port={port} "
        f"CPUs={NODE_CPUS} RealMemory={NODE_MEMORY_MIB}{gres}"
        for name, port in zip(layout.nodes, layout.node_ports, strict=True)
    )


def gres_conf(layout: Layout) -> str:
    """gres.conf(5): a GPU is counted only where a device node is named."""
    if not layout.gpus:
        return ""
    devices = f"{layout.root}/dev/nvidia[0-{layout.gpus - 1}]"
    return "".join(f"NodeName={name} Name=gpu Type={GPU_TYPE} File={devices}\n" for name in layout.nodes)


def slurmdbd_conf(layout: Layout) -> str:
    """slurmdbd.conf(5); slurmdbd refuses it unless its mode is 0600."""
    return f"""\
AuthType=auth/munge
AuthInfo=socket={layout.munge_socket}
DbdHost=localhost
DbdAddr={layout.address}
DbdPort={layout.database_port}
CommunicationParameters=NoInAddrAny
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
PidFile={layout.root}/run/slurmdbd.pid
LogFile={layout.root}/log/slurmdbd.log
CommitDelay=1
"""
