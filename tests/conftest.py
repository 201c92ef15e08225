"""What the tests of the command line share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from desk import Desk
from slurm_cluster.fixtures import cluster, running_cluster

__all__ = ["cluster", "running_cluster"]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A user's directory; what still runs in it at the end is killed."""
    place = Desk(tmp_path)
    yield place
    place.clean()
