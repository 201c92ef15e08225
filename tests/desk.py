"""A directory to work in as a user does, with the real command; the tests of the command line share it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

COMMAND = Path(sys.executable).with_name("reasonforge")
QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "TOKENIZERS_PARALLELISM": "false"}
PATIENCE_S = 300.0

CHEAP = """\
name: cheap
seed: 3
stages:
  problems:
    type: problems
    source: {type: running_sum, train: 120, eval: 20}
  generate:
    type: generate
    inputs: {problems: problems}
    engine: {type: programmatic}
  curate:
    type: curate
    inputs: {traces: generate, problems: problems}
    grader: {type: exact}
"""


class Desk:
    """A user's directory. Call it with the arguments of `reasonforge`; `start` does not wait for the end."""

    command = COMMAND

    def __init__(self, root: Path):
        self.root = root
        self.started: list[subprocess.Popen[str]] = []
        self.write("cheap.yaml", CHEAP)

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def __call__(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [COMMAND, *arguments],
            cwd=self.root,
            env={**os.environ, **QUIET, **environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def good(self, *arguments: str) -> str:
        """What a command that must succeed prints."""
        done = self(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def refused(self, *arguments: str, exit_code: int = 2) -> str:
        """The one line of a command that must fail."""
        done = self(*arguments)
        assert done.returncode == exit_code, done.stdout + done.stderr
        line, *more = done.stderr.splitlines()
        assert not more, done.stderr
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [COMMAND, *arguments],
            cwd=self.root,
            env={**os.environ, **QUIET},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, name: str = "cheap") -> Path:
        """The directory of a run."""
        return self.root / "runs" / name

    def stages(self, name: str = "cheap") -> set[str]:
        """The published stages of a run; nothing may be there without its receipt."""
        found = sorted((self.run(name) / "stages").glob("*"))
        assert all((path / "receipt.json").is_file() for path in found), found
        return {path.name for path in found}

    def digests(self, name: str = "cheap") -> dict[str, str]:
        """The digest of each published stage, every file read."""
        entries = json.loads(self.good("verify", name, "--json"))
        return {entry["stage"]: entry["digest"] for entry in entries}

    def events(self, name: str = "cheap") -> list[dict[str, Any]]:
        """What happened in a run."""
        path = self.run(name) / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def clean(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.communicate()


def until(happened: Callable[[], bool]) -> None:
    """Wait for something that must happen; that it takes for ever is the only failure."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def stage_processes(run: Path) -> list[int]:
    """The living processes that do a stage of a run; each leads a session of its own, which a process that was forked
    from it just now, and still has its command, does not."""
    return [
        number
        for number, command, session in _processes()
        if f"recipes.run_stage\0{run}\0" in command and number == session
    ]


def in_sessions(leaders: list[int]) -> list[int]:
    """All living processes of some sessions: stages and their workers."""
    return [number for number, _, session in _processes() if session in leaders]


def _processes() -> Iterator[tuple[int, str, int]]:
    """Number, command and session of every living process, by Linux's own list."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if state not in "ZX":
                yield int(folder.name), (folder / "cmdline").read_text(), int(session)
