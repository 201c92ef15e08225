"""How a command is put into an image: one small file a runtime. A site names one; `slurm.plan` calls its `wrap`."""

from typing import Annotated

from pydantic import Field

from containers.runtimes.apptainer import ApptainerRuntime
from containers.runtimes.base import Mount, Wrapped
from containers.runtimes.enroot import EnrootRuntime
from containers.runtimes.none import NoRuntime
from containers.runtimes.pyxis import PyxisRuntime
from containers.runtimes.venv import VenvRuntime

Runtime = Annotated[
    PyxisRuntime | EnrootRuntime | ApptainerRuntime | VenvRuntime | NoRuntime, Field(discriminator="type")
]

__all__ = [
    "ApptainerRuntime",
    "EnrootRuntime",
    "Mount",
    "NoRuntime",
    "PyxisRuntime",
    "Runtime",
    "VenvRuntime",
    "Wrapped",
]
