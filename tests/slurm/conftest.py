"""What the tests on a real cluster share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_desk import LONG, ClusterDesk, weights
from desk import Desk
from slurm_cluster.cluster import Cluster


@pytest.fixture
def place(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterDesk]:
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    found = ClusterDesk(tmp_path / "a user's own place", cluster)
    yield found
    found.clean()


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the model that the long training makes without Slurm and without interruption."""
    local = Desk(tmp_path_factory.mktemp("local"))
    local.write("long.yaml", LONG)
    local.good("run", "long.yaml")
    return weights(local)
