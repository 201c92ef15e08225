"""What is said of a disk that is full or may not be written, whoever met it."""

import errno
import os
from pathlib import Path

import pytest
from small_disk import mounted

from reasonforge.disk import DiskFullError, disk_error, plain_disk_errors
from reasonforge.errors import RequestError


def system(number: int, *names: str) -> OSError:
    return OSError(number, os.strerror(number), *([names[0], None, *names[1:]] if names else []))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (system(errno.ENOSPC, "/a"), "/a: no space left on the disk; make room, then the same command goes on"),
        (system(errno.ENOSPC, "/from", "/to"), "/to: no space left"),
        (system(errno.EDQUOT), "/place: disk quota exceeded; make room"),
        (system(errno.EFBIG), "/place: file too large for the disk"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "/place: no space left"),
        (RuntimeError("write: Disk quota exceeded"), "/place: disk quota exceeded"),
    ],
)
def test_a_full_disk_is_a_failure_that_goes_on_later(error: Exception, told: str) -> None:
    found = disk_error(error, Path("/place"))
    assert isinstance(found, DiskFullError)
    assert str(found).startswith(told)
    assert found.exit_code == 1
    outer = ValueError("could not save")
    outer.__context__ = error
    assert str(disk_error(outer, Path("/place"))) == str(found)
    assert disk_error(found, Path("/elsewhere")) is found


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_place_that_may_not_be_written_is_a_wrong_request(number: int) -> None:
    found = disk_error(system(number, "/a"), Path("/place"))
    assert isinstance(found, RequestError)
    assert str(found).startswith("/a: ")
    assert "name a place where you may read and write" in str(found)
    assert disk_error(system(number), Path("/place")) is None  # a signal or a socket, not a file


@pytest.mark.parametrize("error", [ValueError("no space"), system(errno.ENOENT, "/a"), system(errno.ECONNREFUSED)])
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert disk_error(error, Path("/place")) is None
    with pytest.raises(type(error)), plain_disk_errors(Path("/place")):
        raise error


def test_what_libraries_say_on_a_disk_that_is_full(tmp_path: Path) -> None:
    import numpy as np
    import torch
    from safetensors.torch import save_file

    numbers = torch.zeros(1 << 20)
    with mounted(tmp_path / "disk", "size=1m") as disk:
        for write in (
            lambda path: torch.save(numbers, path),
            lambda path: save_file({"x": numbers}, path),
            lambda path: np.save(f"{path}.npy", numbers.numpy()),
            lambda path: path.write_bytes(bytes(1 << 22)),
        ):
            with pytest.raises(Exception) as caught:  # noqa: PT011 - each library has an error of its own
                write(disk / "file")
            assert isinstance(disk_error(caught.value, disk / "not-there-yet"), DiskFullError)
            for path in disk.iterdir():
                path.unlink()
    with pytest.raises(OSError, match="1048576 requested and 5 written") as other:  # where there is room
        raise OSError("1048576 requested and 5 written")
    assert disk_error(other.value, tmp_path) is None
