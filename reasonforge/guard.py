"""A program between us and another one, so that nothing of the other outlives us, however we end.

`reasonforge.processes.start_guarded` runs it as `python guard.py PARENT GRACE_S COMMAND...`. SIGTERM ends the command
with some grace; the parent's death, even by SIGKILL, ends it at once; each time with all processes below it, those of
other sessions too. It exits as the command does.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_ORPHANED = signal.SIGUSR1
_TRACKER, _TRACKER_S = b"multiprocessing.resource_tracker", 5.0
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, _ORPHANED}


def main() -> int:
    """Start the command and wait for its end, or for ours."""
    parent, grace_s, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    _set(_PR_SET_PDEATHSIG, _ORPHANED)
    _set(_PR_SET_CHILD_SUBREAPER, 1)  # what the command leaves behind comes to us
    if os.getppid() != parent:
        return 1
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_in_child)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    code = _wait(process.pid, grace_s)
    _kill_all()
    return code


def _in_child() -> None:
    _set(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _wait(child: int, grace_s: float) -> int:
    """The command's exit code, once it has ended; told to stop, we wait for no longer than the grace."""
    deadline = None
    while True:
        left = None if deadline is None else max(deadline - time.monotonic(), 0)
        found = (
            signal.sigwait(_SIGNALS) if left is None else getattr(signal.sigtimedwait(_SIGNALS, left), "si_signo", 0)
        )
        if found == signal.SIGCHLD:
            for process, status in _reaped():
                if process == child:
                    code = os.waitstatus_to_exitcode(status)
                    return code if code >= 0 else 128 - code
        elif found in (0, _ORPHANED):
            return 128 + signal.SIGKILL
        elif deadline is None:
            deadline = time.monotonic() + grace_s
            os.killpg(child, signal.SIGTERM)


def _reaped() -> list[tuple[int, int]]:
    """The children that have ended, with their status."""
    found: list[tuple[int, int]] = []
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if not process:
            return found
        found.append((process, status))


def _kill_all() -> None:
    """Kill whatever is below us until nothing is left. Python's resource trackers get some seconds to end by
    themselves: once the others are gone, they give back the shared memory of those."""
    deadline = time.monotonic() + _TRACKER_S
    while True:
        patient = time.monotonic() < deadline
        for process in _below(os.getpid()):
            if patient and _TRACKER in _command(process):
                continue
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG if patient else 0)
        except ChildProcessError:
            return
        if not ended:
            time.sleep(0.01)


def _command(process: int) -> bytes:
    """The command line of a process; empty where it has ended."""
    try:
        with open(f"/proc/{process}/cmdline", "rb") as words:
            return words.read()
    except OSError:
        return b""


def _below(top: int) -> list[int]:
    """All processes below one (Linux: proc(5), the parent in `stat`)."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as stat:
                parent = int(stat.read().rpartition(")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
        children.setdefault(parent, []).append(int(name))
    found, open_ = [], [top]
    while open_:
        new = children.get(open_.pop(), [])
        found += new
        open_ += new
    return found


def _set(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
