"""Where the real NeMo is for the tests, and how it is started: in a process of its own, without a GPU."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHIM = Path(__file__).with_name("nemo_cpu.py")


def nemo_python() -> str:
    """The interpreter that has nemo_toolkit; where there is none, the test is skipped, but fails where CI is true."""
    place = ROOT / ".venv-nemo/bin/python"
    python = os.environ.get("NEMO_PYTHON") or (str(place) if place.exists() else "")
    if not python:
        reason = "NEMO_PYTHON names no interpreter with nemo_toolkit, and there is none of `make nemo-env`"
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
    with open(log, "ab") as handle:
        return subprocess.Popen(
            [nemo_python(), str(SHIM), *map(str, arguments)],
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
