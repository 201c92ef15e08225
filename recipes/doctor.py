"""What this machine has, and what each stage of a recipe would lack on it. `reasonforge doctor` shows it."""

import importlib.util
import platform
import shutil
import sys
from typing import Any

from reasonforge.processes import output
from recipes.environment import PACKAGES, package_version
from recipes.interpreters import interpreter, missing
from recipes.recipe import Recipe

_PROGRAMS = {
    "slurm": ["sbatch", "--version"],
    "enroot": ["enroot", "version"],
    "apptainer": ["apptainer", "--version"],
    "nvidia-smi": ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"],
}


def examine() -> dict[str, Any]:
    """What is installed: a version or a description by name, None for what is not there."""
    found: dict[str, Any] = {"python": platform.python_version()}
    found |= {name: package_version(name) for name in PACKAGES}
    found["apex"] = _apex()
    found["cuda"] = _cuda()
    found |= {name: output(command) if shutil.which(command[0]) else None for name, command in _PROGRAMS.items()}
    help_text = output(["srun", "--help"]) if shutil.which("srun") else None
    found["pyxis"] = "srun has --container-image" if help_text and "--container-image" in help_text else None
    return found


def missing_modules(recipe: Recipe) -> dict[str, list[str]]:
    """For each stage, the modules that its work needs and the Python that runs it here cannot find."""
    return {name: missing(stage) for name, stage in recipe.stages.items()}


def other_interpreters(recipe: Recipe) -> dict[str, str]:
    """For each stage that another Python runs here, which one."""
    pythons = {name: interpreter(stage.environment) for name, stage in recipe.stages.items()}
    return {name: python for name, python in pythons.items() if python != sys.executable}


def _cuda() -> str | None:
    """The CUDA version that torch can use here, with the devices."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    devices = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return f"{torch.version.cuda}: {devices}"


def _apex() -> str | None:
    """NVIDIA's apex, told from the unrelated package of that name on PyPI by its fused optimisers."""
    if importlib.util.find_spec("apex") is None or importlib.util.find_spec("apex.optimizers") is None:
        return None
    return package_version("apex") or "present"
