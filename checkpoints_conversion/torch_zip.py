"""The zip archives that torch.save makes: written around a payload that never enters memory, and found in a file.

Only `torch_format` and `torch_dist` use it. The layout is PKWARE's APPNOTE.TXT, all members stored, with 64-bit sizes
where they are needed; torch aligns each storage to 64 bytes from the archive's start.
"""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from reasonforge.errors import RequestError

ALIGNMENT = 64
_ROOT = "archive"
_LIMIT = 0xFFFFFFFF


@dataclass(frozen=True)
class _Member:
    name: bytes
    crc: int
    size: int
    offset: int

    def local(self) -> bytes:
        """The header in front of the content, padded so that the content is aligned."""
        wide = struct.pack("<HHQQ", 1, 16, self.size, self.size) if self.size >= _LIMIT else b""
        start = self.offset + 30 + len(self.name) + len(wide) + 4
        padding = b"Z" * (-start % ALIGNMENT)
        extra = wide + b"FB" + struct.pack("<H", len(padding)) + padding
        size = min(self.size, _LIMIT)
        return struct.pack("<4s5H3I2H", b"PK\3\4", 45 if wide else 20, 0, 0, 0, 0x21, self.crc, size, size,
                           len(self.name), len(extra)) + self.name + extra  # fmt: skip

    def central(self) -> bytes:
        """Its entry in the directory at the end."""
        values = [value for value in (self.size, self.size, self.offset) if value >= _LIMIT]
        wide = struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values) if values else b""
        size, offset = min(self.size, _LIMIT), min(self.offset, _LIMIT)
        return struct.pack("<4s6H3I5H2I", b"PK\1\2", 45, 45 if wide else 20, 0, 0, 0, 0x21, self.crc, size, size,
                           len(self.name), len(wide), 0, 0, 0, 0, offset) + self.name + wide  # fmt: skip


@dataclass(frozen=True)
class Archive:
    """A torch.save archive of one pickle and at most one storage, known before the storage's bytes are.

    `head(crc)`, the payload's bytes and `tail(crc)`, one after the other, are the archive.
    """

    pickle: bytes
    payload_bytes: int | None
    """None where there is no storage."""

    def head(self, crc: int = 0) -> bytes:
        """All before the payload, for a payload with this CRC-32."""
        return b"".join(self._members(crc)[1])

    def tail(self, crc: int = 0) -> bytes:
        """All after the payload."""
        members, heads = self._members(crc)
        start = sum(map(len, heads)) + (self.payload_bytes or 0)
        directory = b"".join(member.central() for member in members)
        count, size = len(members), len(directory)
        end = start + size
        return (
            directory
            + struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
            + struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
            + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, min(start, _LIMIT), 0)
        )

    @property
    def length(self) -> int:
        """Bytes of the whole archive."""
        return len(self.head()) + (self.payload_bytes or 0) + len(self.tail())

    def whole(self) -> bytes:
        """The archive, where it has no storage."""
        return self.head() + self.tail()

    def _members(self, crc: int) -> tuple[list[_Member], list[bytes]]:
        contents: Mapping[str, bytes] = {"data.pkl": self.pickle, "byteorder": b"little", "version": b"3\n"}
        members: list[_Member] = []
        heads: list[bytes] = []
        offset = 0
        for name, content in contents.items():
            member = _Member(f"{_ROOT}/{name}".encode(), zlib.crc32(content), len(content), offset)
            members.append(member)
            heads.append(member.local() + content)
            offset += len(heads[-1])
        if self.payload_bytes is not None:
            members.append(_Member(f"{_ROOT}/data/0".encode(), crc, self.payload_bytes, offset))
            heads.append(members[-1].local())
        return members, heads


@dataclass(frozen=True, slots=True)
class Found:
    """A member of an archive: where its bytes are in the file."""

    offset: int
    bytes: int


class _Window(io.RawIOBase):
    """A part of an open file as a file of its own, so that zipfile sees one archive among many."""

    def __init__(self, descriptor: int, start: int, length: int):
        self._descriptor, self._start, self._length, self._position = descriptor, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = max(0, offset + (0, self._position, self._length)[whence])
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(self._length - self._position, 0)
        if min(left if size < 0 else size, left) > MAX_SMALL_BYTES:
            raise ValueError("a directory of members that is too large")
        data = os.pread(self._descriptor, left if size < 0 else min(size, left), self._start + self._position)
        self._position += len(data)
        return data


MAX_SMALL_BYTES = 64 << 20
"""The largest pickle that is read from an archive."""


class OpenArchive:
    """An archive in a range of an open file: its members by name below the root."""

    def __init__(self, descriptor: int, start: int, length: int, where: str):
        self._descriptor, self._where = descriptor, where
        try:
            with zipfile.ZipFile(_Window(descriptor, start, length)) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OSError, OverflowError) as error:
            raise self.error(f"no torch archive at byte {start} ({type(error).__name__})") from None
        self.members = {entry.filename.partition("/")[2]: self._locate(entry, start, length) for entry in entries}
        if len(self.members) < len(entries):
            raise self.error(f"its archive at byte {start} has two members of one name")

    def error(self, problem: str) -> RequestError:
        """An error about this archive."""
        return RequestError(self._where, problem, "the file is damaged or not a checkpoint's; get it again")

    def _locate(self, entry: zipfile.ZipInfo, start: int, length: int) -> Found:
        header = os.pread(self._descriptor, 30, start + entry.header_offset) if entry.header_offset >= 0 else b""
        if len(header) < 30 or header[:4] != b"PK\3\4" or entry.compress_type != zipfile.ZIP_STORED:
            raise self.error(f"member {entry.filename[:60]!r} is not stored as torch stores it")
        name, extra = struct.unpack("<HH", header[26:30])
        offset = entry.header_offset + 30 + name + extra
        if offset + entry.file_size > length:
            raise self.error(f"member {entry.filename[:60]!r} reaches beyond its archive")
        return Found(start + offset, entry.file_size)

    def read(self, name: str) -> bytes:
        """The content of a small member."""
        if name not in self.members:
            raise self.error(f"its archive has no {name}")
        found = self.members[name]
        if found.bytes > MAX_SMALL_BYTES:
            raise self.error(f"its {name} has {found.bytes} bytes, too many for a pickle of tensors")
        return os.pread(self._descriptor, found.bytes, found.offset)
