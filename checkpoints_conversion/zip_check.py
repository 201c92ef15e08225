"""Whether a torch archive is what was written: every field that a reader goes by, and every member's CRC-32.

`integrity` calls it. zipfile would overlook a damaged field that torch's own reader refuses, so the records are read
here one by one (PKWARE's APPNOTE.TXT). Times, versions and padding are not looked at: no reader goes by them.
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_LIMIT = 0xFFFFFFFF
_BLOCK_BYTES = 1 << 20
_MOST_DIRECTORY_BYTES = 64 << 20
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_FLAGS = {0, 8, 0x800, 0x808}
"""8: sizes and CRC-32 follow the content, as torch writes it; 0x800: names are UTF-8."""


Read = Callable[[int, int], bytes]
"""Bytes of the archive, from a place on, so many."""


class DamageError(Exception):
    """What is wrong with an archive."""


@dataclass(frozen=True, slots=True)
class _Entry:
    name: bytes
    flags: int
    crc: int
    size: int
    offset: int


def check_archive(descriptor: int, start: int, length: int) -> bool:
    """Read all of an archive in a range of an open file. Raises DamageError on the first thing that is wrong.

    Returns whether it has checksums: torch writes zeros in their place after `set_crc32_options(False)`.
    """

    def read(offset: int, count: int) -> bytes:
        data = os.pread(descriptor, count, start + offset) if 0 <= offset <= length - count else b""
        if len(data) != count:
            raise DamageError("its archive ends too early")
        return data

    first, entries = _directory(read, length)
    summed = any(entry.crc for entry in entries)
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.offset):
        offset = _content(read, entry)
        if entry.offset < end or offset + entry.size > first:
            raise DamageError(f"its member {_told(entry)} lies over another")
        end = offset + entry.size
        if summed and (crc := _crc(descriptor, start + offset, entry.size)) != entry.crc:
            raise DamageError(f"its member {_told(entry)} has CRC-32 {crc:08x}, but {entry.crc:08x} was written")
        if entry.flags & 8:
            _check_descriptor(read, entry, end)
    return summed


def _told(entry: _Entry) -> str:
    return repr(entry.name[:60].decode("utf-8", "replace"))


def _crc(descriptor: int, offset: int, size: int) -> int:
    buffer = memoryview(bytearray(min(size, _BLOCK_BYTES)))
    crc, done = 0, 0
    while done < size:
        count = os.preadv(descriptor, [buffer[: size - done]], offset + done)
        if count == 0:
            raise DamageError("its file ends too early")
        crc, done = zlib.crc32(buffer[:count], crc), done + count
    return crc


def _directory(read: Read, length: int) -> tuple[int, list[_Entry]]:
    """Where the central directory begins, and its entries."""
    mark, disk, from_, here, count, size, first, comment = struct.unpack("<4s4H2IH", read(length - 22, 22))
    if mark != b"PK\5\6" or disk or from_ or comment or here != count:
        raise DamageError("the end of its archive is damaged")
    end = length - 22
    if read(length - 42, 4) == b"PK\6\7":
        end = length - 98
        wide = struct.unpack("<4sQ2H2I4Q", read(end, 56))
        locator = struct.unpack("<4sIQI", read(end + 56, 20))
        short = (wide[7] if count != 0xFFFF else count, wide[8] if size != _LIMIT else size,
                 wide[9] if first != _LIMIT else first)  # fmt: skip
        if (wide[0], wide[1], wide[4:6], wide[6]) != (b"PK\6\6", 44, (0, 0), wide[7]) or locator[1:] != (0, end, 1):
            raise DamageError("the end of its archive is damaged")
        if (count, size, first) != short:
            raise DamageError("the end of its archive contradicts itself")
        count, size, first = wide[7:]
    if first + size != end or size > _MOST_DIRECTORY_BYTES:
        raise DamageError("its archive's directory does not end where its end begins")
    return first, list(_entries(read(first, size), count))


def _entries(directory: bytes, count: int) -> Iterator[_Entry]:
    place = 0
    names = set()
    for _ in range(count):
        if place + _CENTRAL.size > len(directory):
            raise DamageError("its archive's directory is damaged")
        mark, _, _, flags, method, _, _, crc, packed, size, name_, extra_, comment, disk, _, kind, offset = (
            _CENTRAL.unpack_from(directory, place)
        )
        name_end = place + _CENTRAL.size + name_
        name, extra = directory[place + _CENTRAL.size : name_end], directory[name_end : name_end + extra_]
        place = name_end + extra_
        if mark != b"PK\1\2" or method or flags not in _FLAGS or comment or disk or kind & 16 or name in names:
            raise DamageError("its archive's directory is damaged")
        names.add(name)
        size, packed, offset = _widened(extra, [size, packed, offset])
        if size != packed:
            raise DamageError("its archive's directory is damaged")
        yield _Entry(name, flags, crc, size, offset)
    if place != len(directory):
        raise DamageError("its archive's directory is damaged")


def _widened(extra: bytes, values: list[int]) -> list[int]:
    """Values that do not fit into 32 bits are in the extra field 1, in their order."""
    wide: list[int] = []
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == 1:
            wide = list(struct.unpack_from(f"<{size // 8}Q", extra.ljust(4 + size, b"\0"), 4))
        extra = extra[4 + size :]
    if values.count(_LIMIT) > len(wide):
        raise DamageError("its archive's sizes are damaged")
    return [wide.pop(0) if value == _LIMIT else value for value in values]


def _content(read: Read, entry: _Entry) -> int:
    """Where a member's content begins; its own header must say what the directory says."""
    mark, _, flags, method, _, _, crc, packed, size, name_, extra_ = _LOCAL.unpack(read(entry.offset, _LOCAL.size))
    name, extra = read(entry.offset + 30, name_), read(entry.offset + 30 + name_, extra_)
    said = (crc, *_widened(extra, [size, packed]))
    expected = (0, 0, 0) if flags & 8 and said == (0, 0, 0) else (entry.crc, entry.size, entry.size)
    if (mark, flags, method, name, said) != (b"PK\3\4", entry.flags, 0, entry.name, expected):
        raise DamageError(f"the header of its member {_told(entry)} is damaged")
    return entry.offset + 30 + int(name_) + int(extra_)


def _check_descriptor(read: Read, entry: _Entry, end: int) -> None:
    """What follows a content whose sizes its header does not say: they are of 32 or of 64 bits."""
    data = read(end, 16)
    if data[:4] == b"PK\7\10":
        narrow = struct.unpack("<3I", data[4:])
        if narrow == (entry.crc, entry.size, entry.size):
            return
        if struct.unpack("<I2Q", read(end + 4, 20)) == (entry.crc, entry.size, entry.size):
            return
    raise DamageError(f"what follows its member {_told(entry)} is damaged")
