"""The one module that starts other programs; commands are argument lists, never shell text."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def output(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 10,
) -> str | None:
    """What a command prints, stripped; None where it cannot be started, fails or takes too long."""
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def finish(command: Sequence[str], timeout_s: float) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, with what it printed. Exit code 127: no such program; 124: it took too long."""
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(list(command), 127, "", f"{command[0]}: no such program")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(list(command), 124, "", f"{command[0]}: no answer in {timeout_s:.0f} s")


def start_logged(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own (Ctrl-C reaches only us), its output appended to a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as handle:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )


def start_guarded(
    command: Sequence[str], log: Path, environment: Mapping[str, str], grace_s: float
) -> subprocess.Popen[bytes]:
    """Start a program that ends with us, even by SIGKILL, and all processes below it with it (`reasonforge.guard`).

    What is returned is its guard: SIGTERM ends it all, SIGKILL coming after `grace_s`; its exit code is the program's.
    """
    guard = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py")), str(os.getpid()), str(grace_s)]
    return start_logged([*guard, *command], log, environment)


def start_piped(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program that we talk to through unbuffered pipes on its standard input and output."""
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=dict(environment))


def die_with_parent(parent: int) -> None:
    """Let the kernel end this process when the one that started it dies, even by SIGKILL (Linux: prctl(2)).

    A killed launcher then leaves no stage behind to collide with the next attempt.

    Args:
        parent: process id of the one that started it; where that is gone already, this process ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


_PR_SET_PDEATHSIG = 1
