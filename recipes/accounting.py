"""What the stages of a run took of a cluster, as its launcher wrote it down; the report shows it."""

from pathlib import Path

from pydantic import TypeAdapter

from reasonforge.config import Strict
from reasonforge.files import write_json


class Usage(Strict):
    """One stage's part of the cluster, all attempts and all tasks of an array together."""

    stage: str
    attempts: int
    """How often one of its jobs was started."""
    gpu_hours_at_most: float
    """What was asked for: GPUs times the time limit of one attempt."""
    gpu_hours: float
    """GPUs times the time that they were held, in attempts that were lost too."""
    cpu_hours: float
    """CPUs times the time that they were held."""


_ROWS = TypeAdapter(list[Usage])


def write_usage(path: Path, rows: list[Usage]) -> None:
    """Publish the rows."""
    write_json(path, _ROWS.dump_python(rows, mode="json"))


def read_usage(path: Path) -> list[Usage]:
    """Read them back; none where no launcher wrote any."""
    return _ROWS.validate_json(path.read_bytes()) if path.exists() else []
