"""A site: what is to be known of a cluster before a job is sent there. One YAML file, read by `plan` and `submit`.

Shipped sites lie in `sites/`; `extends:` lays a file over one of them, or over any other file.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from containers.runtimes import NoRuntime, Runtime
from reasonforge.config import Strict, validate
from reasonforge.document import read_document
from reasonforge.errors import RequestError, nearest
from recipes.stage import Stage

SHIPPED = Path(__file__).parent / "sites"


class Partition(Strict):
    """A partition, as `scontrol show partition` and `sinfo` describe it; null where it is not known."""

    nodes: int = Field(ge=1)
    """Nodes in it."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs on each of its nodes."""
    gpu_type: str | None = None
    """Slurm's name of the GPUs, for --gres=gpu:TYPE:N; null asks for any."""
    gpu_memory_gb: float | None = Field(default=None, gt=0)
    """Memory of one GPU in GB of 2**30 bytes; Slurm does not know it. An H100 SXM has 80 (79.1 usable)."""
    cpus_per_node: int | None = Field(default=None, ge=1)
    """CPUs of a node, as Slurm counts them."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Memory of a node that jobs may have, in GB of 2**30 bytes."""
    max_hours: float | None = Field(default=None, gt=0)
    """MaxTime."""
    max_nodes: int | None = Field(default=None, ge=1)
    """MaxNodes of one job."""
    whole_nodes: bool = False
    """Whether jobs get nodes of their own (OverSubscribe=EXCLUSIVE)."""


class Placement(Strict):
    """Where the jobs of some stages go, and under which name they are charged."""

    partition: str | None = None
    """null takes the site's `gpu_partition` or `cpu_partition`."""
    account: str | None = None
    """--account; null takes the site's."""
    qos: str | None = None
    """--qos; null takes the site's."""
    constraint: str | None = None
    """--constraint: features that the nodes must have."""
    image: str | None = None
    """The image of the stage, for a runtime that needs one; null takes the site's."""
    runtime: Runtime | None = None
    """How its command is put into an image, or into an environment of its own (NeMo); null takes the site's."""


class Secret(Strict):
    """Where a secret is read from when a job starts; its value is in no script, log or receipt."""

    file: str | None = None
    """A file with nothing but the secret, that only its owner may read (mode 0600); `~` is the home directory."""
    variable: str | None = None
    """An environment variable of the shell that submits; Slurm hands the environment on to the job."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.file is None) == (self.variable is None):
            raise ValueError("a secret comes from file or from variable; give one of the two")
        return self


class Retries(Strict):
    """How often a job goes on by itself, by what interrupted it. Memory, configuration and data errors never do."""

    time_limit: int = Field(default=100, ge=0)
    """A training of weeks in jobs of hours needs many."""
    preempted: int = Field(default=100, ge=0)
    """The job was in somebody's way, which says nothing about it."""
    node_fail: int = Field(default=5, ge=0)
    """A node died, lost a GPU or its network."""
    killed: int = Field(default=1, ge=0)
    """SIGKILL by an unknown hand, and failures whose cause is not known."""


class Site(Strict):
    """A cluster."""

    name: str
    """What people call it."""
    partitions: dict[str, Partition] = Field(min_length=1)
    """Its partitions, by Slurm's name."""
    gpu_partition: str | None = None
    """Where stages with GPUs go."""
    cpu_partition: str
    """Where stages without GPUs go."""
    account: str | None = None
    """--account; null leaves it to Slurm's default."""
    qos: str | None = None
    """--qos; null leaves it to Slurm's default."""
    stages: dict[str, Placement] = Field(default_factory=dict)
    """What is otherwise for some stages, by the stage's name in the recipe or by its type; the name counts more."""
    runtime: Runtime = NoRuntime()
    """How a command is put into an image."""
    image: str | None = None
    """The image of every stage that `stages` gives none."""
    mounts: tuple[str, ...] = Field(default=(), strict=False)
    """Directories that a container sees, as SOURCE or SOURCE:TARGET; the run directory is always one of them."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables that every stage gets. Not for secrets: they are written down."""
    prelude: tuple[str, ...] = Field(default=(), strict=False)
    """Lines of shell at the head of each batch script, such as `module load cuda/12.8`."""
    secrets: dict[str, Secret] = Field(default_factory=dict)
    """Secrets by the variable under which a stage finds them."""
    offline: bool = False
    """Whether compute nodes reach no network: Hugging Face's libraries are then told not to try."""
    max_array: int = Field(default=1001, ge=1)
    """Slurm's MaxArraySize: indices are below it. 1001 is Slurm's default."""
    array_at_once: int = Field(default=256, ge=1)
    """Tasks of one array that run at the same time."""
    save_s: int = Field(default=120, ge=10, le=3600)
    """Seconds before the time limit at which a stage is told to save itself. Slurm may tell it up to 60 s earlier."""
    requeue: bool = True
    """Whether Slurm may requeue jobs here (JobRequeue)."""
    retries: Retries = Retries()
    """How often a job goes on by itself."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = {"cpu_partition": self.cpu_partition, "gpu_partition": self.gpu_partition}
        names |= {f"stages.{stage}.partition": placement.partition for stage, placement in self.stages.items()}
        for key, name in names.items():
            if name is not None and name not in self.partitions:
                raise ValueError(
                    f"{key} is {name!r}, but partitions has no such name; {nearest(name, self.partitions)}"
                )
        return self

    def placement(self, name: str, stage: Stage) -> Placement:
        """Where a stage's jobs go: what is said for its name, else for its type, else for all."""
        found: dict[str, str | None] = {
            "partition": self.gpu_partition if stage.resources.gpus_per_node else self.cpu_partition,
            "account": self.account,
            "qos": self.qos,
            "image": self.image,
        }
        for said in (self.stages.get(stage.type), self.stages.get(name)):
            if said is not None:
                found |= said.model_dump(exclude_none=True)
        if found["partition"] is None:
            raise RequestError(f"stage {name}", "wants GPUs, but the site names no gpu_partition", "name one")
        return Placement.model_validate(found)


OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
"""What keeps Hugging Face's libraries from asking a network that is not there."""


def load_site(name: str) -> Site:
    """Read a site by the path of its file, or by the name of one that is shipped.

    Raises RequestError for no such file, unknown keys, wrong types and partitions that are not listed.
    """
    path = Path(name)
    if not path.exists() and (SHIPPED / f"{name}.yaml").exists():
        path = SHIPPED / f"{name}.yaml"
    if not path.exists():
        known = sorted(found.stem for found in SHIPPED.glob("*.yaml"))
        raise RequestError(f"--site {name}", "no such file", f"shipped sites: {', '.join(known)}")
    return validate(Site, read_document(path, key="extends", shipped=SHIPPED))


def read_secrets(secrets: Mapping[str, Secret]) -> dict[str, str]:
    """The values of the secrets, by variable. Raises RequestError where one is missing or others may read its file."""
    return {name: _read_secret(name, secret) for name, secret in secrets.items()}


def _read_secret(name: str, secret: Secret) -> str:
    where = f"secrets.{name}"
    if secret.variable is not None:
        value = os.environ.get(secret.variable)
        if not value:
            raise RequestError(where, f"the variable {secret.variable} is not set", "export it where you submit")
        return value
    path = Path(str(secret.file)).expanduser()
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise RequestError(where, f"{path}: {error.strerror}", "put the secret there, with mode 0600") from None
    if stat.S_IMODE(mode) & 0o077:
        raise RequestError(where, f"others may read {path}", f"chmod 600 {path}")
    return path.read_text(encoding="utf-8").strip()
