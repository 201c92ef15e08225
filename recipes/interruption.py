"""How a stage learns that it has to stop: at a time limit or a preemption Slurm sends SIGUSR2 or SIGTERM.

By default the stage stops at once, for what it had finished is on the disk. One that can save more in a moment works
inside `deferred()`, looks at `requested()` between its steps, saves, and returns. `run_stage` then exits with 85.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_INTERRUPTED = 85
"""Exit code of a stage that saved itself because it was told to; the same command goes on from there."""

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class Interrupted(BaseException):
    """The stage was told to stop. Not an Exception: no library that catches those may swallow it."""


class _State:
    requested = False
    deferring = 0


def catch_signals() -> None:
    """Take the signals of this process. Called once, by the main thread."""
    for number in SIGNALS:
        signal.signal(number, _receive)


def requested() -> bool:
    """Whether the stage was told to stop."""
    return _State.requested


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, a signal is only remembered; on the way out it counts."""
    _State.deferring += 1
    try:
        yield
    finally:
        _State.deferring -= 1
    if _State.requested and not _State.deferring:
        raise Interrupted


def _receive(*_: object) -> None:
    _State.requested = True
    if not _State.deferring:
        raise Interrupted
