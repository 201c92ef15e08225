"""Servers of an OpenAI-compatible program on this machine: started, watched, started again where they end, stopped.

The engine `vllm` runs one for each replica. A server never outlives us: `reasonforge.guard` sees to that.
"""

import asyncio
import errno
import os
import re
import shlex
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from data_prep.generation.endpoint import Endpoint
from reasonforge.errors import StageError
from reasonforge.processes import start_guarded

GRACE_S = 15.0
"""What a server has between SIGTERM and SIGKILL, to give back its shared memory."""
PROBE_S = 10.0
"""Seconds between two looks at the health of a server that works."""
_LOOK_S = 0.2
_OURS = "reasonforge:"
_TAIL_LINES, _TAIL_CHARACTERS, _CAUSE_CHARACTERS = 6, 600, 300
_CAUSE = re.compile(r"^(?:\([^)]*\) )?(?:ERROR [^]]*\] )?([\w.]*(?:Error|Exception): .*(?:\n +\S.*)?)", re.MULTILINE)
"""An exception, with the line that goes on where it ends, also after what vLLM puts before each line of a process."""


@dataclass(frozen=True)
class Launch:
    """How one server is started, and how much patience it gets."""

    name: str
    """For errors ("server 0")."""
    command: Callable[[int], Sequence[str]]
    """The command line for a port of 127.0.0.1."""
    environment: Mapping[str, str]
    """All of its environment."""
    log: Path
    """Its output, appended over all its starts."""
    api_key: str
    """What it is asked with."""
    concurrency: int
    """Requests it gets at once."""
    start_s: float
    """Seconds until it must be ready."""
    silence_s: float
    """Seconds that it may go without an answer about its health while it works."""
    restarts: int
    """How often it may end without an answer in between before we give up."""


class Server(Endpoint):
    """One server, and the one that takes its place. `keep` runs it; until it is ready, `ready` waits."""

    trust_environment = False

    def __init__(self, launch: Launch):
        self._launch = launch
        self.concurrency, self.lives = launch.concurrency, launch.restarts + 1
        self._up = asyncio.Event()
        self._url = ""
        self._ended: asyncio.Future[None] | None = None
        self._answers = self._offset = 0

    async def ready(self) -> tuple[str, "asyncio.Future[None]"]:
        """Its present URL, and the future of its end."""
        while self._ended is None or self._ended.done():
            await self._up.wait()
        return self._url, self._ended

    def answered(self) -> None:
        """It does its work: what ended before does not count any more."""
        self._answers += 1

    async def keep(self) -> None:
        """Start it, watch it, and start it again until cancelled. Raises StageError, with the end of its log, where its
        first start fails or it keeps ending."""
        ends = starts = 0
        while True:
            self._answers = 0
            why, was_ready = await self._live()
            ends = 1 if self._answers else ends + 1
            starts += was_ready
            if not was_ready and not starts and why is not _PORT_TAKEN:
                self._fail(f"{why} before it was ready")
            if ends > self._launch.restarts:
                self._fail(f"{why}, {ends} times in a row")

    async def _live(self) -> tuple[str, bool]:
        """One life of the server: why it ended, and whether it had been ready."""
        launch = self._launch
        reserved = reserve_port()
        port = reserved.getsockname()[1]
        process = self._start(port)
        try:
            why = await self._wait_until_ready(process, port)
            reserved.close()
            if why is not None:
                return (_PORT_TAKEN if process.poll() is not None and _is_taken(port) else why), False
            self._url, self._ended = f"http://127.0.0.1:{port}/v1", asyncio.get_running_loop().create_future()
            self._up.set()
            return await self._watch(process, port), True
        finally:
            reserved.close()
            self._up.clear()
            if self._ended is not None and not self._ended.done():
                self._ended.set_result(None)
            process.terminate()
            await asyncio.to_thread(_wait, process, GRACE_S + 5.0)
            self._note(f"{launch.name} ended: exit code {process.returncode}")

    def _start(self, port: int) -> "subprocess.Popen[bytes]":
        launch = self._launch
        command = list(launch.command(port))
        launch.log.parent.mkdir(parents=True, exist_ok=True)
        self._note(f"{launch.name}: {shlex.join(command)}")
        self._offset = launch.log.stat().st_size
        return start_guarded(command, launch.log, launch.environment, GRACE_S)

    async def _wait_until_ready(self, process: "subprocess.Popen[bytes]", port: int) -> str | None:
        """None once it is ready, else why it ended. Raises StageError where it takes too long."""
        deadline = time.monotonic() + self._launch.start_s
        while True:
            healthy = await asyncio.to_thread(self._probe, port, "/health", "/v1/models")
            if process.poll() is not None:
                return f"ended with exit code {process.returncode}"
            if healthy:
                return None
            if time.monotonic() > deadline:
                self._fail(f"was not ready within start_s, {self._launch.start_s:g} s")
            await asyncio.sleep(_LOOK_S)

    async def _watch(self, process: "subprocess.Popen[bytes]", port: int) -> str:
        """Wait for the end of its process, or of its health: why."""
        seen = looked = time.monotonic()
        while process.poll() is None:
            await asyncio.sleep(_LOOK_S)
            if time.monotonic() - looked < PROBE_S:
                continue
            if await asyncio.to_thread(self._probe, port, "/health"):
                seen = time.monotonic()
            looked = time.monotonic()
            if looked - seen > self._launch.silence_s:
                return f"said nothing about its health for {looked - seen:.0f} s"
        return f"ended with exit code {process.returncode}"

    def _probe(self, port: int, *paths: str) -> bool:
        """Whether it answers 200 at all of these; a program need not have `/health`."""
        return all(
            _status(f"http://127.0.0.1:{port}{path}", self._launch.api_key)
            in ((200, 404) if path == "/health" else (200,))
            for path in paths
        )

    def _fail(self, what: str) -> NoReturn:
        launch = self._launch
        raise StageError(f"{launch.name} {what}; {launch.log} {_told(launch.log, self._offset)}")

    def _note(self, line: str) -> None:
        with open(self._launch.log, "a", encoding="utf-8") as log:
            log.write(f"{_OURS} {line}\n")


def reserve_port() -> socket.socket:
    """A socket bound to a free port of 127.0.0.1. While it is open no one is given that port, but a server that sets
    SO_REUSEADDR, as all do, can listen there (Linux: socket(7))."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(("127.0.0.1", 0))
    return found


_PORT_TAKEN = "found its port taken"


def _is_taken(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind(("127.0.0.1", port))
            own.listen()
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _status(url: str, api_key: str) -> int:
    """The HTTP status of a GET, past all proxies; 0 where there is none."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {api_key}"})  # noqa: S310 - it is http
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=PROBE_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError):  # refused, reset, too late, or not HTTP
        return 0


def _wait(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()


def _told(log: Path, offset: int) -> str:
    """What was written from an offset on, in one line: how it ends, and before that the first error, which is the cause
    of what vLLM's other processes say later."""
    with open(log, "rb") as handle:
        handle.seek(max(offset, os.fstat(handle.fileno()).st_size - 2**18))
        text = handle.read().decode("utf-8", "replace")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    ends = " | ".join([line for line in lines if line and not line.startswith(_OURS)][-_TAIL_LINES:])
    ends = ends if len(ends) <= _TAIL_CHARACTERS else "..." + ends[-_TAIL_CHARACTERS:]
    found = _CAUSE.search(text)
    cause = " | ".join(" ".join(line.split()) for line in found[1].splitlines()) if found else ""
    said = "" if cause in ends else f"says {cause[:_CAUSE_CHARACTERS]}; it "
    return f"{said}ends with: {ends or '(nothing)'}"
