"""A disk that is full or may not be written, told in one line. The command line, run_stage and curation use it.

Full is a failure of the work (exit 1): the request was good, and goes on once there is room. A place where nobody may
write is a wrong request (exit 2).
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reasonforge.errors import ReasonforgeError, RequestError, StageError

# In words by which `explain` knows them too.
_FULL = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "disk quota exceeded",
    errno.EFBIG: "file too large for the disk or the limit on file sizes",
}
_CLOSED = {
    errno.EROFS: "a read-only file system",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
}
_SAID = re.compile(rf"(?i)(?P<space>{os.strerror(errno.ENOSPC)})|(?P<quota>{os.strerror(errno.EDQUOT)})")
"""What libraries write into errors of their own, as safetensors does."""
_CUT_SHORT = re.compile(r"iostream error|unexpected pos \d+ vs \d+|PytorchStreamWriter|\d requested and \d+ written")
"""What torch and numpy say of a write that was cut short, whatever the cause."""
_NO_ROOM_BYTES = 16 << 20
"""A disk with less room than this was full when a write was cut short."""


class DiskFullError(StageError):
    """No room was left for what a stage or a command writes."""


def disk_error(error: BaseException, place: Path) -> ReasonforgeError | None:
    """What to tell a user of an error that is the disk's; None for any other.

    Args:
        error: looked through with what caused it.
        place: where the work is done, or will be published; named where the error names no file.
    """
    if isinstance(error, DiskFullError):
        return error
    if isinstance(error, OSError) and error.errno in _CLOSED and error.filename is not None:
        return RequestError(_where(error, place), _CLOSED[error.errno], "name a place where you may read and write")
    for one in _causes(error):
        number = _number(one, place)
        if number in _FULL:
            return DiskFullError(
                f"{_where(one, place)}: {_FULL[number]}; make room, then the same command goes on: what was finished "
                "is kept, and nothing was published"
            )
    return None


@contextmanager
def plain_disk_errors(place: Path) -> Iterator[None]:
    """Raise what `disk_error` makes of an OSError; `place` is named where the error names no file."""
    try:
        yield
    except OSError as error:
        told = disk_error(error, place)
        if told is None:
            raise
        raise told from None


def _causes(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    seen: set[int] = set()
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _number(error: BaseException, place: Path) -> int | None:
    """The error's number, or that of what its text says."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    if found := _SAID.search(text):
        return errno.ENOSPC if found["space"] else errno.EDQUOT
    if _CUT_SHORT.search(text) and shutil.disk_usage(_existing(place)).free < _NO_ROOM_BYTES:
        return errno.ENOSPC
    return None


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that is there."""
    return next((one for one in (path, *path.absolute().parents) if one.is_dir()), Path("/"))


def _where(error: BaseException, place: Path) -> str:
    """The file that an error names, of two the one that is written."""
    named = [getattr(error, name, None) for name in ("filename2", "filename")]
    return str(next((name for name in named if isinstance(name, str | Path)), place))
