"""Headers of safetensors files, read and written without the library: where each tensor's bytes lie.

The format is github.com/huggingface/safetensors: 8 bytes of length, a JSON header, then the tensors' bytes, gapless.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints_conversion.dtypes import ITEM_BYTES
from checkpoints_conversion.untrusted import open_regular, told
from reasonforge.errors import RequestError

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in a file: `offset` is in bytes from the file's start, and the bytes are contiguous, row by row."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def bytes(self) -> int:
        """Length in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Header:
    """What a file's header says."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read and check a file's header; the tensors are in the order of their bytes.

    Raises RequestError on any header that safetensors itself would refuse, before trusting a number in it.
    """
    with open(open_regular(path), "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        prefix = handle.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise _bad(path, f"its header claims {max(length, 0)} bytes in a file of {size}")
        entries = _parse(path, handle.read(length))
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _bad(path, "its __metadata__ is not a mapping of texts")
    start = 8 + length
    found = [_tensor(path, name, entry, start) for name, entry in entries.items()]
    found.sort(key=lambda tensor: (tensor.offset, tensor.bytes))
    end = start
    for tensor in found:
        if tensor.offset != end:
            raise _bad(path, f"tensor {told(tensor.name)} starts at byte {tensor.offset - start}, not at {end - start}")
        end += tensor.bytes
    if end != size:
        raise _bad(path, f"its tensors end at byte {end} in a file of {size}")
    return Header({tensor.name: tensor for tensor in found}, metadata)


def _bad(path: Path, problem: str) -> RequestError:
    return RequestError(str(path), f"not a whole safetensors file: {problem}", "get the file again")


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key is there twice")
        return found

    try:
        entries = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"its header is not JSON ({type(error).__name__})") from None
    if not isinstance(entries, dict):
        raise _bad(path, "its header is not a JSON object")
    return entries


def _tensor(path: Path, name: str, entry: Any, start: int) -> Tensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _bad(path, f"tensor {told(name)} has no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _bad(path, f"tensor {told(name)} has the unknown dtype {str(dtype)[:40]!r}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or len(shape) > 64:
        raise _bad(path, f"tensor {told(name)} has a shape or offsets that are not natural numbers")
    tensor = Tensor(name, dtype, tuple(shape), path, start + offsets[0])
    if offsets[1] - offsets[0] != tensor.bytes:
        found = offsets[1] - offsets[0]
        raise _bad(path, f"tensor {told(name)} has {found} bytes where its shape needs {tensor.bytes}")
    return tensor


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def render_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str], alignment: int = 8
) -> bytes:
    """The header of a file whose tensors follow in this order; its length is a multiple of `alignment`.

    Args:
        tensors: dtype and shape by name.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % alignment)
    return struct.pack("<Q", len(text)) + text
