"""A real Slurm on one machine, without systemd and on loopback only: for the tests, and `make slurm-cluster`."""

from slurm_cluster.cluster import Cluster, why_not

__all__ = ["Cluster", "why_not"]
