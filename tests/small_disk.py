"""Disks that are full or may not be written, for tests: a file system in memory, a limit on the size of files."""

import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(place: Path, option: str) -> Iterator[Path]:
    """A file system in memory at a place, where this user may have one."""
    place.mkdir()
    if not _mount("-t", "tmpfs", "-o", option, "tmpfs", place):
        pytest.skip("this user may not mount a file system")
    try:
        yield place
    finally:
        subprocess.run([str(shutil.which("umount")), str(place)], check=True)


def remount(place: Path, option: str) -> None:
    """Give it another size, or close it to writing."""
    assert _mount("-o", f"remount,{option}", place)


def _mount(*words: object) -> bool:
    tool = shutil.which("mount")
    return tool is not None and subprocess.run([tool, *map(str, words)], check=False).returncode == 0


def small_files() -> None:
    """No file may become larger than 64 KiB: a disk that is full in the middle of a write, without one."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
