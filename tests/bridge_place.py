"""Where the real Megatron-Bridge is for the tests, and how it is started: in a process of its own, without a GPU."""

import subprocess
from pathlib import Path

from nemo_place import framework_python, nemo_environment, start_framework

SHIM = Path(__file__).with_name("bridge_cpu.py")


def bridge_python() -> str:
    """The interpreter that has Bridge; see `framework_python`."""
    return framework_python("bridge", "megatron-bridge")


def bridge_environment(home: Path, **more: str) -> dict[str, str]:
    """The variables of a process of Bridge: those of one of NeMo."""
    return nemo_environment(home, **more)


def start_bridge(home: Path, log: Path, *arguments: object, **variables: str) -> "subprocess.Popen[bytes]":
    """Start Bridge without a GPU with the arguments of bridge_cpu.py; its output goes into a log."""
    return start_framework(bridge_python(), SHIM, home, log, *arguments, **variables)
