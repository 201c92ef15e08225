"""The fixture `cluster`: one Slurm for each worker of the tests, clean for each test. `tests/conftest.py` imports it.

Two workers have two clusters, which costs 5 s and saves more: these tests mostly wait for Slurm.
"""

import os
from collections.abc import Iterator

import pytest

from slurm_cluster.cluster import Cluster, why_not


def require_slurm() -> None:
    """Skip the test where Slurm is not installed; in continuous integration (CI=true) that is a failure."""
    if reason := why_not():
        if os.environ.get("CI") == "true":
            pytest.fail(f"no Slurm, and CI=true: {reason}")
        pytest.skip(f"no Slurm: {reason}")


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    """Four nodes of 8 GPUs."""
    require_slurm()
    with Cluster(nodes=4, gpus=8) as shared:
        yield shared


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """The shared cluster with idle nodes; what the test leaves behind is cancelled and mended."""
    yield running_cluster
    running_cluster.tidy()
