"""Where the real Megatron-Bridge is for the tests, and how it is started: in a process of its own, without a GPU."""

import os
import subprocess
from pathlib import Path

import pytest
from nemo_place import ROOT, nemo_environment

SHIM = Path(__file__).with_name("bridge_cpu.py")


def bridge_python() -> str:
    """The interpreter that has Bridge; where there is none, the test is skipped, but fails where CI is true."""
    place = ROOT / ".venv-bridge/bin/python"
    python = os.environ.get("BRIDGE_PYTHON") or (str(place) if place.exists() else "")
    if not python:
        reason = "BRIDGE_PYTHON names no interpreter with megatron-bridge, and there is none of `make bridge-env`"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return python


def bridge_environment(home: Path, **more: str) -> dict[str, str]:
    """The variables of a process of Bridge: those of one of NeMo."""
    return nemo_environment(home, **more)


def start_bridge(home: Path, log: Path, *arguments: object, **variables: str) -> "subprocess.Popen[bytes]":
    """Start Bridge without a GPU with the arguments of bridge_cpu.py; its output goes into a log."""
    with open(log, "ab") as handle:
        return subprocess.Popen(
            [bridge_python(), str(SHIM), *map(str, arguments)],
            env=bridge_environment(home, **variables),
            stdout=handle,
            stderr=subprocess.STDOUT,
            cwd=home,
        )
