"""Where the real NeMo is for the tests, and how it is started: in a process of its own, without a GPU."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHIM = Path(__file__).with_name("nemo_cpu.py")


def nemo_python() -> str:
    """The interpreter that has nemo_toolkit; see `framework_python`."""
    return framework_python("nemo", "nemo_toolkit")


def framework_python(name: str, package: str) -> str:
    """The interpreter that has a framework; where there is none, the test is skipped, but fails where CI is true."""
    variable, place = f"{name.upper()}_PYTHON", ROOT / f".venv-{name}/bin/python"
    python = os.environ.get(variable) or (str(place) if place.exists() else "")
    if not python:
        reason = f"{variable} names no interpreter with {package}, and there is none of `make {name}-env`"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return python


def nemo_environment(home: Path, **more: str) -> dict[str, str]:
    """The variables of a process of NeMo: not those of a Slurm job around the tests, no network, one thread."""
    outside_slurm = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    quiet = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "NEMO_HOME": str(home),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/recipes'}",
    }
    return {**outside_slurm, **quiet, **more}


def start_nemo(home: Path, log: Path, *arguments: object, **variables: str) -> "subprocess.Popen[bytes]":
    """Start NeMo without a GPU with the arguments of nemo_cpu.py; its output goes into a log."""
    return start_framework(nemo_python(), SHIM, home, log, *arguments, **variables)


def start_framework(
    python: str, shim: Path, home: Path, log: Path, *arguments: object, **variables: str
) -> "subprocess.Popen[bytes]":
    """Start a framework's interpreter with a shim and what it is to run; its output goes into a log."""
    with open(log, "ab") as handle:
        return subprocess.Popen(
            [python, str(shim), *map(str, arguments)],
            env=nemo_environment(home, **variables),
            stdout=handle,
            stderr=subprocess.STDOUT,
            cwd=home,
        )


def nemo_launcher(path: Path) -> Path:
    """A program that stands for NeMo's Python, as REASONFORGE_NEMO_PYTHON names it, and needs no GPU."""
    path.write_text(f'#!/bin/sh\nexec {nemo_python()} {SHIM} "$@"\n')
    path.chmod(0o755)
    return path
