"""Runs a Python script in a process of its own and kills it for real once a file has appeared."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240.0


def run(script: Path, *arguments: object, kill_at: Path | None = None) -> bool:
    """Run to the end, or SIGKILL as soon as `kill_at` exists; True where it was killed before it had ended."""
    process = subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + PATIENCE_S
    while kill_at and not kill_at.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    children = descendants(process.pid) if kill_at else []
    if kill_at and process.poll() is None:
        process.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=PATIENCE_S)
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{child}").exists() for child in children), "a worker outlived its parent"
    if process.returncode == -signal.SIGKILL:
        return True
    assert process.returncode == 0, errors
    return False


def descendants(process: int) -> list[int]:
    """All processes below one, by Linux's own list."""
    listed = Path(f"/proc/{process}/task/{process}/children")
    children = [int(child) for child in listed.read_text().split()] if listed.exists() else []
    return children + [below for child in children for below in descendants(child)]
