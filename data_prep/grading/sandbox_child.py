"""The inside of the sandbox: a program of its own, standard library only, that `data_prep.grading.sandbox` starts.

It reads a request (JSON) on standard input, runs one command under the limits in it, and writes what happened (JSON)
on standard output. Four processes: the warden keeps time, collects output and ends everything; the builder enters the
namespaces; the keeper is process 1 of the new process namespace, whose end is the end of all in it; the last is the
command. Where the kernel allows no namespaces the answer says so, and nothing has run.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOM = "/tmp"  # noqa: S108 - inside the sandbox only
"""The private directory: the only place where the command can write."""

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = (1, 2, 4, 32, 4096, 16384, 1 << 18)
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_SET_CHILD_SUBREAPER = 1, 4, 38, 36
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR, _AT_RECURSIVE = 442, 0x8000
_NOBODY = 65534
_HELPERS = 2
"""The builder and the keeper count as processes of the user too."""
_LINKS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_ERROR_BYTES = 4096


class Refused(Exception):  # noqa: N818 - it is said to the other side as a word
    """The kernel or its settings do not allow the isolation that was asked for."""


def main() -> None:
    """Serve one request."""
    request = json.loads(sys.stdin.buffer.read())
    os.setsid()
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != request["parent"]:
        return
    _libc().prctl(_PR_SET_CHILD_SUBREAPER, 1)
    sys.stdout.write(json.dumps(_warden(request)))


def _warden(request: dict[str, Any]) -> dict[str, Any]:
    """Start the builder, collect what is written within limits of bytes and time, and end all that is left."""
    pipes = {name: os.pipe() for name in ("stdout", "stderr", "report")}
    builder = os.fork()
    if builder == 0:
        _run_or_die(lambda: _builder(request, {name: pair[1] for name, pair in pipes.items()}), pipes["report"][1])
    for pair in pipes.values():
        os.close(pair[1])
    reading = {pair[0]: name for name, pair in pipes.items()}
    got = {name: bytearray() for name in pipes}
    limits = {"stdout": request["output_bytes"], "stderr": _ERROR_BYTES, "report": 1 << 16}
    deadline = time.monotonic() + request["wall_s"]
    reason = ""
    while "report" in reading.values() and not reason:
        left = deadline - time.monotonic()
        ready = select.select(list(reading), [], [], max(left, 0))[0] if left > 0 else []
        reason = "" if left > 0 else "wall"
        for descriptor in ready:
            reason = _take(descriptor, reading, got, limits) or reason
    _end_all(builder)
    while reading and not reason and select.select(list(reading), [], [], 0)[0]:
        for descriptor in select.select(list(reading), [], [], 0)[0]:
            reason = _take(descriptor, reading, got, limits) or reason
    report = json.loads(got["report"] or b"{}")
    return {
        "refused": report.get("refused"),
        "reason": reason or report.get("reason", "lost"),
        "code": report.get("code"),
        "stdout": got["stdout"].decode("utf-8", "replace"),
        "stderr": got["stderr"].decode("utf-8", "replace"),
    }


def _take(descriptor: int, reading: dict[int, str], got: dict[str, bytearray], limits: dict[str, int]) -> str:
    """Read what is there; "output" where that is more than may be."""
    name = reading[descriptor]
    data = os.read(descriptor, 65_536)
    if not data:
        del reading[descriptor]
        return ""
    room = limits[name] - len(got[name])
    got[name] += data[:room]
    return "output" if name == "stdout" and len(data) > room else ""


def _end_all(builder: int) -> None:
    """End every descendant: the keeper's death ends its namespace, and orphans come to this process."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    living = [builder]
    while True:
        for child in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.0005)
        living = [int(pid) for pid in children.read_text().split()] if children.exists() else []


def _run_or_die(body: Callable[[], None], report: int) -> None:
    """What a forked process does, and its end: it must never come back into the code of its parent."""
    try:
        body()
    except (Refused, OSError) as error:
        os.write(report, json.dumps({"refused": str(error)}).encode())
    finally:
        os._exit(127)


def _builder(request: dict[str, Any], pipes: dict[str, int]) -> None:
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.closerange(3, min(pipes.values()))
    tasks = _own_tasks(request["isolated"])
    if request["isolated"]:
        _enter_namespaces(request)
    else:
        os.chdir(request["room"])
    keeper = os.fork()
    if keeper == 0:
        _run_or_die(lambda: _keeper(request, pipes, tasks), pipes["report"])
    for descriptor in pipes.values():
        os.close(descriptor)
    os.waitpid(keeper, 0)


def _keeper(request: dict[str, Any], pipes: dict[str, int], tasks: int) -> None:
    """Process 1 of the namespace: start the command, wait for it, say how it ended, and end."""
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _libc().prctl(_PR_SET_DUMPABLE, 0)
    if request["isolated"]:
        _drop_capabilities()
    for name, text in request["files"].items():
        Path(name).write_text(text, encoding="utf-8")
    stdin = os.memfd_create("stdin")
    with os.fdopen(os.dup(stdin), "wb") as handle:
        handle.write(request["stdin"].encode("utf-8", "replace"))
    os.lseek(stdin, 0, os.SEEK_SET)
    command = os.fork()
    if command == 0:
        _run_or_die(lambda: _command(request, pipes, stdin, tasks), pipes["report"])
    for name in ("stdout", "stderr"):
        os.close(pipes[name])
    pid = status = 0
    while pid != command:
        pid, status = os.waitpid(-1, 0)
    code = os.waitstatus_to_exitcode(status)
    reason = "cpu" if code in (-signal.SIGXCPU, -signal.SIGKILL) else "exit"
    os.write(pipes["report"], json.dumps({"reason": reason, "code": code}).encode())


def _command(request: dict[str, Any], pipes: dict[str, int], stdin: int, tasks: int) -> None:
    _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for target, source in enumerate((stdin, pipes["stdout"], pipes["stderr"])):
        os.dup2(source, target)
    os.closerange(3, max(*pipes.values(), stdin) + 1)
    limits = {
        resource.RLIMIT_CPU: request["cpu_s"],
        resource.RLIMIT_AS: request["memory_bytes"],
        resource.RLIMIT_FSIZE: request["file_bytes"],
        resource.RLIMIT_NOFILE: request["open_files"],
        resource.RLIMIT_NPROC: request["processes"] + tasks,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_STACK: min(request["memory_bytes"] // 4, 64 * 2**20),
    }
    for kind, limit in limits.items():
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    os.execve(request["command"][0], request["command"], request["environment"])  # noqa: S606


# The namespaces.


def _enter_namespaces(request: dict[str, Any]) -> None:
    """Leave the network, the processes, the IPC and the files of this machine behind, and all privileges.

    Real root first builds the new root (it can reach an interpreter in a closed home directory), then becomes nobody;
    anyone else has the powers for that in a user namespace only. `/proc` is held open for the way: what is written
    there concerns the new user namespace.
    """
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        rest = _NEWUSER | _NEWNET | _NEWPID | _NEWIPC | _NEWUTS
        if os.geteuid() == 0 and _libc().unshare(_NEWNS) == 0:
            _build_root(request)
            _become_nobody()
            _unshare(rest | _NEWNS, proc)
        else:
            if os.geteuid() == 0:
                _become_nobody()
            _unshare(rest | _NEWNS, proc)
            _build_root(request)
    finally:
        os.close(proc)
    _check(_libc().sethostname(b"sandbox", 7), "sethostname")
    os.chdir(ROOM)


def _unshare(flags: int, proc: int) -> None:
    """Enter new namespaces as the user that this process is now, and allow no further user namespace in them."""
    user, group = os.geteuid(), os.getegid()
    _check(_libc().unshare(flags), "unshare")
    for name, text in (
        ("self/setgroups", "deny"),
        ("self/uid_map", f"{user} {user} 1"),
        ("self/gid_map", f"{group} {group} 1"),
        ("sys/user/max_user_namespaces", "0"),
    ):
        descriptor = os.open(name, os.O_WRONLY, dir_fd=proc)
        os.write(descriptor, text.encode())
        os.close(descriptor)


def _become_nobody() -> None:
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    # Changing identity forgets both.
    _libc().prctl(_PR_SET_DUMPABLE, 1)
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _build_root(request: dict[str, Any]) -> None:
    """A root of its own: system libraries and the interpreter read-only, some devices, and an empty room to write in.

    First a scratch root over /tmp is entered (pivot_root(2)), so that a source below /tmp is still found in the old.
    """
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")  # noqa: S108
    os.chdir("/tmp")  # noqa: S108
    os.mkdir("old")
    os.mkdir("new")
    _pivot("/tmp", "/tmp/old")  # noqa: S108
    os.chdir("/")
    _mount("tmpfs", "/new", "tmpfs", _MS_NOSUID, "mode=755,size=1m")
    links = [path for path in _LINKS if os.path.islink("/old" + path)]
    for path in links:
        os.symlink(os.readlink("/old" + path), "/new" + path)
    bound: list[str] = []
    for path in sorted({*request["readonly"], "/usr", *(set(_LINKS) - set(links))}):
        if os.path.isdir("/old" + path) and not any(path.startswith(above + "/") for above in bound):
            bound.append(path)
            os.makedirs("/new" + path)
            _bind("/old" + path, "/new" + path)
            _read_only("/new" + path)
    for path in ("/etc/ld.so.cache", *(f"/dev/{name}" for name in _DEVICES)):
        if os.path.exists("/old" + path):
            os.makedirs(os.path.dirname("/new" + path), exist_ok=True)
            Path("/new" + path).touch()
            _bind("/old" + path, "/new" + path)
    os.makedirs("/new" + ROOM, exist_ok=True)
    _mount("tmpfs", "/new" + ROOM, "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode=777,size={request['room_bytes']}")
    _mount(None, "/new", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID)
    os.chdir("/new")
    _pivot(".", ".")
    _check(_libc().umount2(b".", _MNT_DETACH), "umount")
    os.chdir("/")


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [text.encode() if text is not None else None for text in (source, target, kind, options)]
    _check(_libc().mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]), f"mount {target}")


def _bind(source: str, target: str) -> None:
    _mount(source, target, None, _MS_BIND | _MS_REC)


def _read_only(target: str) -> None:
    """Make a bind mount and all below it read-only; before Linux 5.12 only itself, with the flags it must keep."""
    attributes = (ctypes.c_uint64 * 4)(_MS_RDONLY | _MS_NOSUID, 0, 0, 0)
    arguments = ctypes.c_int(-100), target.encode(), ctypes.c_uint(_AT_RECURSIVE), attributes, ctypes.c_size_t(32)
    if _libc().syscall(ctypes.c_long(_MOUNT_SETATTR), *arguments) != 0:
        kept = os.statvfs(target).f_flag & 0xC0E
        _mount(None, target, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | kept)


def _pivot(new: str, old: str) -> None:
    number = _PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise Refused(f"pivot_root: its number is not known on {os.uname().machine}")
    _check(_libc().syscall(ctypes.c_long(number), new.encode(), old.encode()), "pivot_root")


def _drop_capabilities() -> None:
    """No capability is left, in the new user namespace neither (capset(2), version 3)."""
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _check(_libc().capset(header, nothing), "capset")


def _own_tasks(isolated: bool) -> int:
    """What to add to the limit on processes: before Linux 5.14, and without namespaces, it counts all of a user's."""
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2] if part.isdigit())
    if isolated and release >= (5, 14):
        return _HELPERS
    user = _NOBODY if isolated and os.geteuid() == 0 else os.geteuid()
    count = 0
    for entry in os.scandir("/proc"):
        try:
            if entry.name.isdigit() and entry.stat().st_uid == user:
                count += len(os.listdir(f"/proc/{entry.name}/task"))
        except OSError:
            continue  # It has ended meanwhile.
    return count + _HELPERS


def _check(result: int, what: str) -> None:
    if result != 0:
        raise Refused(f"{what}: {os.strerror(ctypes.get_errno())}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


if __name__ == "__main__":
    main()
