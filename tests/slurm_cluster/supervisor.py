"""The process that all daemons of one cluster descend from; `Cluster` starts it and talks to it in lines of JSON.

It is a "child subreaper" (prctl(2)): what a daemon leaves behind becomes its child, slurmstepd and the processes of
jobs included. When its standard input ends, because the cluster was stopped or because its owner was killed, it
kills all its descendants and nothing else. It runs by itself, with the standard library only.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

PR_SET_CHILD_SUBREAPER = 36


class Supervisor:
    """Starts and ends named daemons; remembers which have ended."""

    def __init__(self) -> None:
        self.pids: dict[str, int] = {}
        self.ended: dict[int, int] = {}

    def start(self, name: str, command: list[str], environment: dict[str, str], log: str) -> int:
        """Start a daemon that stays in the foreground, in a session of its own; returns its pid."""
        with open(log, "ab") as handle:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=handle,
                env=environment,
                start_new_session=True,
                cwd="/",
            )
        process.returncode = 0  # reap() takes the real one: Popen shall neither wait nor warn
        self.pids[name] = process.pid
        return process.pid

    def stop(self, name: str, number: int, patience_s: float) -> None:
        """Send a signal and wait for the end; SIGKILL after `patience_s`."""
        pid = self.pids[name]
        deadline = time.monotonic() + patience_s
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        while pid not in self.ended:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def running(self) -> dict[str, bool]:
        """Whether each daemon that was ever started still runs."""
        return {name: pid not in self.ended for name, pid in self.pids.items()}

    def reap(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Take the exit status of every ended child, orphans of the daemons included (a SIGCHLD handler)."""
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                self.ended[found[0]] = found[1]

    def end(self) -> None:
        """Kill all descendants, again and again until none is left: they may still be starting others."""
        while living := list(descendants(os.getpid())):
            for pid in living:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
            self.reap()

    def answer(self, request: dict[str, Any]) -> Any:
        """Do what a line asks for."""
        services: dict[str, Callable[..., Any]] = {"start": self.start, "stop": self.stop, "running": self.running}
        return services[request.pop("do")](**request)


def descendants(ancestor: int) -> Iterator[int]:
    """All processes below one, zombies included, by the kernel's list of parents."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    waiting = [ancestor]
    while waiting:
        found = children.get(waiting.pop(), [])
        waiting += found
        yield from found


def main() -> None:
    """Serve until standard input ends."""
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1) != 0:
        sys.exit("the kernel refuses PR_SET_CHILD_SUBREAPER")
    supervisor = Supervisor()
    signal.signal(signal.SIGCHLD, supervisor.reap)
    try:
        for line in sys.stdin:
            try:
                reply = {"result": supervisor.answer(json.loads(line))}
            except OSError as error:
                reply = {"error": str(error)}
            sys.stdout.write(json.dumps(reply) + "\n")
            sys.stdout.flush()
    finally:
        supervisor.end()


if __name__ == "__main__":
    main()
