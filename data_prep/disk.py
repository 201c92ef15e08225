"""A disk that is full or may not be written, told in one line. `curation` and the commands work within it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reasonforge.errors import RequestError

_CAUSES = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not become as large",
    errno.EROFS: "the file system can only be read",
    errno.EACCES: "it may not be written",
}


@contextmanager
def plain_disk_errors(place: Path) -> Iterator[None]:
    """Turn an OSError of the disk into a RequestError; `place` is named where the error names no file."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CAUSES:
            raise
        where = str(error.filename or place)
        raise RequestError(
            where, _CAUSES[error.errno], "what was finished is kept, and nothing was published"
        ) from None
