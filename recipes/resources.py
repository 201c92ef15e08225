"""What a stage asks of a cluster, without saying which: nodes, GPUs, memory, time. The site decides where that is."""

from pydantic import Field

from reasonforge.config import Strict


class Resources(Strict):
    """Of one job; a stage that is divided into an array asks for as much for each of its parts."""

    nodes: int = Field(default=1, ge=1)
    """Nodes that work together."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs on each node; 0 asks for a node without."""
    cpus_per_task: int = Field(default=2, ge=1)
    """CPU cores of each process that the engine starts on a node."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Memory of each node, in GB of 2**30 bytes; null takes the partition's default."""
    hours: float = Field(default=1.0, gt=0)
    """Time limit of one attempt. A stage that reaches it saves itself and goes on in the next attempt."""
    array: int = Field(default=1, ge=1)
    """Jobs that share the work of a stage that can be divided; what comes out does not depend on it."""
