"""Puts parquet files together without reading their rows: their bytes are copied and their footers merged.

`data_prep.tokenization.dataset` calls it, so that what shards have encoded and compressed is not done once more in one
process. pyarrow has no such function: it merges footers, but cannot move the offsets in them.

Source: the Parquet format (parquet.thrift: FileMetaData and below) and Thrift's compact protocol.
"""

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from reasonforge.errors import RequestError

_MAGIC = b"PAR1"
_COPY_BYTES = 4 << 20

_Struct: TypeAlias = dict[int, tuple[int, Any]]
"""By number each field's type and value."""
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)

# The fields of parquet.thrift that are used here.
_ROWS, _ROW_GROUPS = 3, 4
_COLUMNS, _GROUP_OFFSET, _GROUP_ORDINAL = 1, 5, 7
_CHUNK_META = 3
_CHUNK_OFFSETS = (2, 4, 6)
"""Of a copy of its metadata, of its offset index and its column index."""
_COLUMN_OFFSETS = (9, 10, 11, 14)
"""Of its data pages, index page, dictionary page and Bloom filter."""


def concatenate(parts: Sequence[Path], handle: BinaryIO) -> None:
    """Write one parquet file with the row groups of some files of one schema, in order.

    Memory is that of the footers. All else that a file says of itself (its schema, its writer) is the first one's.

    Raises RequestError for a file that is not parquet, and for one that was written with another schema.
    """
    handle.write(_MAGIC)
    position, merged, schema = len(_MAGIC), None, b""
    for path in parts:
        with open(path, "rb") as part:
            footer, end = _read_footer(part, path)
            part.seek(len(_MAGIC))
            left = end - len(_MAGIC)
            while left and (block := part.read(min(left, _COPY_BYTES))):
                handle.write(block)
                left -= len(block)
        _move(footer, position - len(_MAGIC))
        position += end - len(_MAGIC)
        told = _described(footer)
        if merged is None:
            merged, schema = footer, told
        elif told != schema:
            raise RequestError(str(path), f"it has other columns than {parts[0]}")
        else:
            merged[_ROWS] = (_I64, merged[_ROWS][1] + footer[_ROWS][1])
            merged[_ROW_GROUPS][1][1].extend(footer[_ROW_GROUPS][1][1])
    if merged is None:
        raise ValueError("no parts")
    footer_bytes = _write_struct(merged)
    handle.write(footer_bytes + struct.pack("<I", len(footer_bytes)) + _MAGIC)


def _read_footer(part: BinaryIO, path: Path) -> tuple[_Struct, int]:
    """A file's FileMetaData, and where its row groups end."""
    size = part.seek(0, os.SEEK_END)
    part.seek(max(size - 8, 0))
    length, magic = struct.unpack("<I4s", part.read(8).rjust(8, b"\0"))
    end = size - 8 - length
    if magic != _MAGIC or end < len(_MAGIC):
        raise RequestError(str(path), "not a whole parquet file")
    part.seek(end)
    return _Reader(part.read(length)).struct(), end


def _described(footer: _Struct) -> bytes:
    """What a footer says but for its rows."""
    return _write_struct({number: value for number, value in footer.items() if number not in (_ROWS, _ROW_GROUPS)})


def _move(footer: _Struct, by: int) -> None:
    """Add to all offsets of a file's row groups. Their ordinals, which only encryption needs, are left out."""
    for group in footer[_ROW_GROUPS][1][1]:
        group.pop(_GROUP_ORDINAL, None)
        _add(group, (_GROUP_OFFSET,), by)
        for chunk in group[_COLUMNS][1][1]:
            _add(chunk, _CHUNK_OFFSETS, by)
            _add(chunk[_CHUNK_META][1], _COLUMN_OFFSETS, by)


def _add(fields: _Struct, numbers: Sequence[int], by: int) -> None:
    for number in numbers:
        if number in fields and fields[number][1]:  # 0 says that there is none
            fields[number] = (fields[number][0], fields[number][1] + by)


class _Reader:
    """Thrift's compact protocol, without knowing what the fields are."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self) -> _Struct:
        """Fields in their order."""
        found: _Struct = {}
        number = 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            number = number + step if step else _unzigzag(self._varint())
            found[number] = (kind, None if kind in (_TRUE, _FALSE) else self._value(kind))
        return found

    def _value(self, kind: int) -> Any:
        if kind in (_I16, _I32, _I64):
            return _unzigzag(self._varint())
        if kind in (_TRUE, _FALSE, _BYTE):  # in a list
            return self._byte()
        if kind == _DOUBLE:
            return self._take(8)
        if kind == _BINARY:
            return self._take(self._varint())
        if kind in (_LIST, _SET):
            head = self._byte()
            size = head >> 4 if head >> 4 < 15 else self._varint()
            return head & 15, [self._value(head & 15) for _ in range(size)]
        if kind == _STRUCT:
            return self.struct()
        raise ValueError(f"no field of parquet's metadata is of type {kind}")

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _take(self, size: int) -> bytes:
        self._at += size
        return self._data[self._at - size : self._at]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value


def _write_struct(fields: _Struct) -> bytes:
    pieces, last = [], 0
    for number, (kind, value) in fields.items():
        step = number - last
        pieces.append(bytes([step << 4 | kind]) if 0 < step < 16 else bytes([kind]) + _varint(_zigzag(number)))
        pieces.append(b"" if kind in (_TRUE, _FALSE) else _write_value(kind, value))
        last = number
    return b"".join(pieces) + b"\0"


def _write_value(kind: int, value: Any) -> bytes:
    if kind in (_I16, _I32, _I64):
        return _varint(_zigzag(value))
    if kind in (_TRUE, _FALSE, _BYTE):
        return bytes([value])
    if kind == _DOUBLE:
        return bytes(value)
    if kind == _BINARY:
        return _varint(len(value)) + bytes(value)
    if kind == _STRUCT:
        return _write_struct(value)
    item, values = value
    size = len(values)
    head = bytes([size << 4 | item]) if size < 15 else bytes([15 << 4 | item]) + _varint(size)
    return head + b"".join(_write_value(item, one) for one in values)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def _unzigzag(value: int) -> int:
    return value >> 1 if not value & 1 else -(value >> 1) - 1
