"""The sandbox: runs a program that a model wrote with no network, no files of ours and hard limits.

The code grader calls `run`; `data_prep.grading.sandbox_child` is its inside.
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from reasonforge.config import Strict
from reasonforge.errors import RequestError, StageError
from reasonforge.processes import start_piped

Reason = Literal["exit", "cpu", "wall", "output", "lost"]


class Sandbox(Strict):
    """What a program may use.

    With `isolation: namespaces` (Linux user, mount, process, network, IPC and host name namespaces, as `unshare -rnpm`
    makes them) it sees: `/usr` and the interpreter read-only, an empty private `/tmp` in memory, five devices, no
    `/proc`, no network interface (not even loopback), no process but its own, no environment variable of ours. It has
    no capability, cannot get one, cannot make a further user namespace. All that it started ends with it.
    Memory is limited for each process, so the whole may take `processes` times `memory_mib`, and `/tmp` besides.
    Not closed: the kernel itself is shared; where that is not enough, run the job inside a virtual machine.
    """

    isolation: Literal["namespaces", "none"] = "namespaces"
    """"none": limits, an empty environment and a private directory only. Network and all files that this user may
    read or write are open to the code: for hosts that are sandboxes themselves. Never chosen by itself."""
    cpu_s: int = Field(default=10, ge=1)
    """CPU seconds of each process (RLIMIT_CPU)."""
    wall_s: float = Field(default=60.0, gt=0)
    """Seconds after which all its processes are killed; for what sleeps. Larger than `cpu_s`, as hosts are busy."""
    memory_mib: int = Field(default=1024, ge=64)
    """Address space of each process (RLIMIT_AS), MiB."""
    processes: int = Field(default=8, ge=1)
    """Processes and threads at once (RLIMIT_NPROC). With `isolation: none` it does not bind root."""
    file_mib: int = Field(default=16, ge=1)
    """The largest file (RLIMIT_FSIZE) in MiB; the private directory holds four times that."""
    open_files: int = Field(default=64, ge=8)
    """Open files of each process (RLIMIT_NOFILE)."""
    output_kib: int = Field(default=1024, ge=1)
    """Standard output, KiB; a program that writes more is ended. Of standard error 4 KiB are kept."""
    site_packages: bool = False
    """Show the packages of this environment (numpy, …) to the program, read-only; else it has the standard library."""


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    `reason`: "exit" (with its `code`, negative for a signal), "cpu" (its CPU time was used up, or it was killed),
    "wall", "output", or "lost" (all was killed from outside, by the kernel for memory for instance).
    """

    reason: Reason
    code: int | None
    stdout: str
    stderr: str


def run(sandbox: Sandbox, script: str, files: Mapping[str, str], stdin: str = "") -> Ended:
    """Run one of `files` with this environment's Python, in a directory that holds just them.

    Raises RequestError where the kernel does not allow the isolation that is asked for; nothing has run then.
    """
    if sys.platform != "linux":
        raise _refusal("this is not Linux")
    with tempfile.TemporaryDirectory(prefix="reasonforge-sandbox-") as room:
        found = _ask(_request(sandbox, script, files, stdin, room))
    if found["refused"]:
        raise _refusal(found["refused"])
    return Ended(found["reason"], found["code"], found["stdout"], found["stderr"])


@lru_cache(maxsize=8)
def check(sandbox: Sandbox) -> None:
    """Run an empty program once. Raises RequestError where this machine cannot."""
    ended = run(sandbox, "main.py", {"main.py": "print(1)"})
    if (ended.reason, ended.stdout) != ("exit", "1\n"):
        raise StageError(f"sandbox: an empty program ended with {ended.reason} {ended.code}: {ended.stderr.strip()}")


def _request(sandbox: Sandbox, script: str, files: Mapping[str, str], stdin: str, room: str) -> dict[str, Any]:
    # The interpreter that a virtual environment is made of; its directory need not be below /usr.
    base = os.path.realpath(sys.base_prefix)
    python = sys.executable if sandbox.site_packages else os.path.realpath(sys.executable)
    flags = ["-I", "-B", "-X", "utf8"] + ([] if sandbox.site_packages else ["-S"])
    return {
        "parent": os.getpid(),
        "isolated": sandbox.isolation == "namespaces",
        "command": [python, *flags, script],
        "environment": {
            "PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0",  # noqa: S108
            "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
        },
        "files": dict(files),
        "stdin": stdin,
        "room": room,
        "readonly": sorted({base, os.path.abspath(sys.prefix)} if sandbox.site_packages else {base}),
        "cpu_s": sandbox.cpu_s,
        "wall_s": sandbox.wall_s,
        "memory_bytes": sandbox.memory_mib * 2**20,
        "processes": sandbox.processes,
        "file_bytes": sandbox.file_mib * 2**20,
        "room_bytes": 4 * sandbox.file_mib * 2**20,
        "open_files": sandbox.open_files,
        "output_bytes": sandbox.output_kib * 2**10,
    }  # fmt: skip


def _ask(request: Mapping[str, Any]) -> dict[str, Any]:
    """Send a request to a sandbox process of its own, and wait for its answer."""
    inside = str(Path(__file__).with_name("sandbox_child.py"))
    with start_piped([sys.executable, "-I", "-S", inside], {"LANG": "C.UTF-8"}) as process:
        if process.stdin is None or process.stdout is None:
            raise StageError("sandbox: its pipes are missing")
        try:
            view = memoryview(json.dumps(request).encode())
            while view:
                view = view[process.stdin.write(view) :]
            process.stdin.close()
            answer = process.stdout.read()
        finally:
            process.kill()
    if not answer:
        raise StageError(f"sandbox: its process ended without an answer (exit status {process.returncode})")
    found: dict[str, Any] = json.loads(answer)
    return found


def _refusal(why: str) -> RequestError:
    return RequestError(
        "sandbox.isolation",
        f"no namespaces here ({why}), so a model's code would reach the network and your files",
        "grade on a host that allows user namespaces, or write `isolation: none` to accept that",
    )
