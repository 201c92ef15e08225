"""Files that are written as a stream and are there under their names only when they are whole.

The writers of `data_prep.formats` and `data_prep.tokenization` use it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from reasonforge.files import fsync_path


def _nothing() -> None:
    pass


@contextmanager
def published(path: Path, *, durable: bool = True, before: Callable[[], object] = _nothing) -> Iterator[BinaryIO]:
    """A handle to write to; at the end of the block `path` is published by rename, after an error nothing is.

    Args:
        durable: flush it to the disk first.
        before: called when the file is whole, and before it is there: writes what a reader must find beside it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as handle:
            yield handle
            handle.flush()
            if durable:
                os.fsync(handle.fileno())
        before()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        fsync_path(path.parent)
