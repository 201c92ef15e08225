"""Directories in megatron-core's `torch_dist` format: laid out for writing, and opened for reading by their metadata.

The layout is `.metadata`, `__{rank}_{i}.distcp` files of torch.save records, `common.pt` and `metadata.json`. A key
holds all layers (and experts) stacked; reading takes any tensor, pipeline and expert parallel sharding, as well as one
key for each layer.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints_conversion.assembly import PAGE_BYTES, Assembly, Files
from checkpoints_conversion.casting import cast, retyped
from checkpoints_conversion.copying import Write
from checkpoints_conversion.dtypes import ITEM_BYTES
from checkpoints_conversion.families.table import MegatronTensor
from checkpoints_conversion.geometry import Plane, Stored
from checkpoints_conversion.torch_format import (
    Chunk,
    Metadata,
    Record,
    StackedTensor,
    find_payload,
    metadata_bytes,
    object_archive,
    read_common,
    read_metadata,
    tensor_archive,
)
from checkpoints_conversion.torch_zip import ALIGNMENT, OpenArchive
from checkpoints_conversion.untrusted import read_bytes, read_json, told
from reasonforge.errors import RequestError
from reasonforge.files import write_atomic

METADATA = ".metadata"
COMMON = "common.pt"
BACKEND = "metadata.json"
FIRST_FILE = "__0_0.distcp"
FILES, MOST_FILES = 4, 256
"""Into how many `.distcp` files an import writes, at least and at most: as many workers and tasks can write at once."""

MAX_METADATA_BYTES = 1 << 30
"""The largest `.metadata` that is read: a thousand ranks with their optimizer states have some hundred megabytes."""

FILE_BYTES = 512 << 20
"""About how much goes into each file between these limits; the result does not depend on who writes it."""

_BACKEND_TEXT = (
    '{"sharded_backend": "torch_dist", "sharded_backend_version": 1, '
    '"common_backend": "torch", "common_backend_version": 1}'
)
_EMPTY_STATE = object_archive([None]).whole()
"""What an extra state without content deserialises to: megatron-core keeps each as a list of one."""


@dataclass(frozen=True)
class Layout:
    """A directory planned to the byte."""

    sizes: dict[str, int]
    writes: list[Write]
    tensors: list[StackedTensor]
    states: dict[str, Record]
    state_bytes: list[tuple[int, bytes]]
    """Offsets and contents of the extra states, in the first file."""

    def finish(self, directory: Path, common: Mapping[str, Any]) -> None:
        """Write what is not a tensor, `.metadata` and `metadata.json` last: loaders look for those."""
        with open(directory / FIRST_FILE, "r+b") as handle:
            for offset, data in self.state_bytes:
                handle.seek(offset)
                handle.write(data)
        write_atomic(directory / COMMON, object_archive(dict(common)).whole())
        write_atomic(directory / METADATA, metadata_bytes(self.tensors, self.states))
        write_atomic(directory / BACKEND, _BACKEND_TEXT)


def lay_out(
    chunks: Sequence[tuple[MegatronTensor, int, Assembly]],
    state_keys: Iterable[str],
    below: str,
    prefix: str = "",
    target: str | None = None,
) -> Layout:
    """Place every chunk, given as (tensor, first row, content), and every empty extra state.

    Args:
        below: the directory of the weights in the result; it goes before each file's name in `sizes` and `writes`.
        prefix: what every key begins with.
        target: the type to which every tensor is cast; None keeps each one's own.
    """
    total = sum(retyped(assembly, target).bytes for _, _, assembly in chunks)
    files = min(max(-(-total // FILE_BYTES), FILES), MOST_FILES)
    sizes = {f"__{number}_0.distcp": 0 for number in range(files)}
    names = list(sizes)
    writes: list[Write] = []
    stacks: dict[str, tuple[str, tuple[int, ...], list[Chunk]]] = {}
    laid = 0
    for tensor, row, source in chunks:
        assembly = retyped(source, target)
        name = names[min(laid * files // max(total, 1), files - 1)]
        laid += assembly.bytes
        shape = (*(1 for _ in tensor.stack), *assembly.shape)
        archive = tensor_archive(assembly.dtype, shape)
        head, length = len(archive.head()), archive.length
        start = sizes[name] + (-(sizes[name] + head) % PAGE_BYTES if assembly.bytes >= PAGE_BYTES else 0)
        writes.append(cast(Write(assembly, f"{below}/{name}", start + head, archive), source.dtype))
        offsets = (*tensor.index, row, *(0 for _ in assembly.shape[1:]))
        whole = (*tensor.stack, *tensor.shape)
        dtype, _, found = stacks.setdefault(tensor.key, (assembly.dtype, whole, []))
        if dtype != assembly.dtype:
            raise RequestError(str(assembly.fragments[0].file), f"{tensor.label} is {assembly.dtype}, others {dtype}")
        found.append(Chunk(offsets, shape, Record(name, start, length)))
        sizes[name] = start + length + -(start + length) % ALIGNMENT
    tensors = [StackedTensor(prefix + key, dtype, whole, tuple(found)) for key, (dtype, whole, found) in stacks.items()]
    states, state_bytes = {}, []
    for key in state_keys:
        states[prefix + key] = Record(names[0], sizes[names[0]], len(_EMPTY_STATE))
        state_bytes.append((sizes[names[0]], _EMPTY_STATE))
        sizes[names[0]] += len(_EMPTY_STATE)
    return Layout({f"{below}/{name}": size for name, size in sizes.items()}, writes, tensors, states, state_bytes)


@dataclass(frozen=True)
class TorchDist:
    """An opened directory."""

    path: Path
    metadata: Metadata
    common: dict[str, Any]
    places: dict[tuple[str, tuple[int, ...]], StackedTensor]
    """Each model tensor by its stacked name and, where a key holds one layer (or expert) alone, its numbers."""

    def stored(self, tensor: MegatronTensor, names: Sequence[str], files: Files) -> Stored | None:
        """Find a model's tensor under any of `names`; None where it is not there.

        Raises RequestError where it has another shape than the model's, or a record is damaged.
        """
        for name in names:
            for alone in range(len(tensor.index) + 1):
                found = self.places.get((name, tensor.index[:alone]))
                if found is not None:
                    return self._planes(tensor, found, alone, files)
        return None

    def _planes(self, tensor: MegatronTensor, found: StackedTensor, alone: int, files: Files) -> Stored:
        index, expected = tensor.index[alone:], (*tensor.stack[alone:], *tensor.shape)
        depth = len(index)
        rows = found.shape[depth] if len(found.shape) > depth else 0
        fits = tensor.rows <= rows if tensor.padded else tensor.rows == rows
        if not fits or (*found.shape[:depth], tensor.rows, *found.shape[depth + 1 :]) != expected:
            raise self.error(f"{found.key} has shape {list(found.shape)}, but the model's is {list(expected)}")
        if found.dtype not in ITEM_BYTES or found.key in self.metadata.flattened:
            raise self.error(f"{found.key} has type {found.dtype}, which does not convert")
        planes = []
        for chunk in found.chunks:
            if len(chunk.offsets) != len(found.shape) or len(chunk.sizes) != len(found.shape):
                raise self.error(f"{found.key} has a chunk of another rank than its own")
            inside = [place - start for place, start in zip(index, chunk.offsets, strict=False)]
            if all(0 <= place < size for place, size in zip(inside, chunk.sizes, strict=False)):
                planes.append(self._plane(found, chunk, inside, files))
        return Stored(tensor, found.dtype, rows, tuple(planes))

    def _plane(self, found: StackedTensor, chunk: Chunk, inside: Sequence[int], files: Files) -> Plane:
        """The part of a chunk that belongs to one place in the stack."""
        path, record = self.path / chunk.record.file, chunk.record
        descriptor = files.descriptor(path)
        if record.offset + record.length > os.fstat(descriptor).st_size:
            raise self.error(f"{found.key} lies beyond the end of {record.file}, which is cut short")
        payload = find_payload(OpenArchive(descriptor, record.offset, record.length, f"{path}: {found.key}"))
        if payload.dtype != found.dtype or payload.shape != chunk.sizes:
            raise self.error(
                f"{found.key} is {payload.dtype} {list(payload.shape)} in {record.file}, "
                f"but {found.dtype} {list(chunk.sizes)} in {METADATA}"
            )
        depth = len(inside)
        row, rows = chunk.offsets[depth], chunk.sizes[depth]
        column, columns = (chunk.offsets[depth + 1], chunk.sizes[depth + 1]) if len(found.shape) > depth + 1 else (0, 1)
        number = 0
        for place, size in zip(inside, chunk.sizes, strict=False):
            number = number * size + place
        offset = payload.offset + number * rows * columns * ITEM_BYTES[found.dtype]
        return Plane(path, offset, row, rows, column, columns)

    def error(self, problem: str) -> RequestError:
        """An error about this directory's content."""
        return RequestError(str(self.path), problem, "the checkpoint is damaged or of another model")


_PREFIX = re.compile(r"^(module\.|model\.)*")
_LAYER = re.compile(r"(?<=decoder\.layers\.)(\d{1,6})\.")
_EXPERT = re.compile(r"(?<=experts\.experts\.)(\d{1,6})\.|(?<=\.experts\.)local_experts\.(\d{1,6})\.")


def _place(key: str) -> tuple[str, tuple[int, ...]]:
    """A stored key as its stacked name and its numbers."""
    name = _PREFIX.sub("", key)
    numbers: list[int] = []
    if layer := _LAYER.search(name):
        numbers.append(int(layer[1]))
        name = _LAYER.sub("", name, count=1)
    if expert := _EXPERT.search(name):
        numbers.append(int(expert[1] or expert[2]))
        name = _EXPERT.sub("" if expert[1] else "experts.", name, count=1)
    return name, tuple(numbers)


def open_torch_dist(directory: Path) -> TorchDist:
    """Open a directory by its metadata, without reading a weight.

    Raises RequestError where it is not one, is not whole, or holds a pickle that could run code.
    """
    backend = read_json(directory / BACKEND)
    if not isinstance(backend, dict) or backend.get("sharded_backend") != "torch_dist":
        kind = backend.get("sharded_backend") if isinstance(backend, dict) else None
        raise RequestError(str(directory / BACKEND), f"the format is {str(kind)[:40]!r}", "only torch_dist converts")
    path = directory / METADATA
    if not path.is_file():
        raise RequestError(
            str(path), "no such file, so no finished checkpoint", "it was interrupted while it was saved"
        )
    metadata = read_metadata(read_bytes(path, MAX_METADATA_BYTES), str(path))
    missing = sorted(
        {chunk.record.file for tensor in metadata.tensors.values() for chunk in tensor.chunks}
        - {entry.name for entry in os.scandir(directory)}
    )
    if missing:
        raise RequestError(f"{directory}/{told(missing[0])}", "missing, though .metadata points to it", "get it again")
    places = {_place(key): tensor for key, tensor in metadata.tensors.items()}
    return TorchDist(directory, metadata, read_common_file(directory / COMMON), places)


def read_common_file(path: Path) -> dict[str, Any]:
    """What a `common.pt` holds; empty where there is none."""
    if not path.is_file():
        return {}
    with Files() as files:
        return read_common(OpenArchive(files.descriptor(path), 0, path.stat().st_size, str(path)))
