"""The one place that knows torch's private names: what a `.distcp` record, `.metadata` and `common.pt` pickle.

Nothing here imports torch. A test saves with the installed torch and fails loudly when its names or layout change.
"""

import io
import math
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from checkpoints_conversion.dtypes import FROM_TORCH, ITEM_BYTES, WEIGHTS
from checkpoints_conversion.pickles import Call, Global, Instance, Items, Persistent, StandIn, dumps, loads, stand_in
from checkpoints_conversion.torch_zip import Archive, OpenArchive
from reasonforge.errors import RequestError

_DCP = "torch.distributed.checkpoint.metadata"
_STORAGES = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}
_STORAGE_DTYPES = {name: dtype for dtype, name in _STORAGES.items()}
_REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
_SIZE = Global("torch", "Size")


def tensor_archive(dtype: str, shape: tuple[int, ...]) -> Archive:
    """The archive that torch.save makes of a contiguous tensor on the CPU."""
    count = math.prod(shape)
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    storage = Persistent(("storage", Global("torch", _STORAGES[dtype]), "0", "cpu", count))
    hooks = Call(Global("collections", "OrderedDict"), ())
    return Archive(dumps(Call(_REBUILD, (storage, 0, shape, strides, False, hooks))), count * ITEM_BYTES[dtype])


def object_archive(value: Any) -> Archive:
    """The archive that torch.save makes of plain values without tensors."""
    return Archive(dumps(value), None)


def scalars_archive(values: Mapping[str, bool | int | float]) -> bytes:
    """The archive that torch.save makes of a dictionary of tensors without dimensions: bool, int32 or float32."""
    kinds = {bool: ("BoolStorage", "?"), int: ("IntStorage", "<i"), float: ("FloatStorage", "<f")}
    tensors, content = {}, io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for number, (key, value) in enumerate(values.items()):
            storage, form = kinds[type(value)]
            identity = Persistent(("storage", Global("torch", storage), str(number), "cpu", 1))
            hooks = Call(Global("collections", "OrderedDict"), ())
            tensors[key] = Call(_REBUILD, (identity, 0, (), (), False, hooks))
            archive.writestr(zipfile.ZipInfo(f"archive/data/{number}"), struct.pack(form, value))
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), dumps(tensors))
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), b"little")
        archive.writestr(zipfile.ZipInfo("archive/version"), b"3\n")
    return content.getvalue()


def namespace(values: Mapping[str, Any]) -> Instance:
    """An argparse.Namespace, as Megatron-LM keeps its arguments in `common.pt`."""
    return Instance(Global("argparse", "Namespace"), dict(values))


def torch_dtype(dtype: str) -> Global:
    """torch's name of an element type."""
    return Global("torch", WEIGHTS[dtype])


@dataclass(frozen=True, slots=True)
class Record:
    """Where one chunk of a tensor lies: an archive in a `.distcp` file."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Chunk:
    """A part of a stacked tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    record: Record


@dataclass(frozen=True)
class StackedTensor:
    """A tensor as `.metadata` lists it; its shape includes the stack of layers (and experts)."""

    key: str
    dtype: str
    """safetensors' name, or torch's where no weight has such a type."""
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Metadata:
    """What `.metadata` says."""

    tensors: dict[str, StackedTensor]
    objects: dict[str, Record]
    flattened: frozenset[str]
    """Keys of tensors that megatron-core cut across their rows (optimizer states): their shapes are not the model's."""


def metadata_bytes(tensors: Iterable[StackedTensor], objects: Mapping[str, Record]) -> bytes:
    """`.metadata` as torch.distributed.checkpoint (version 1.0.0) and megatron-core read it."""
    tensors = list(tensors)
    described: dict[str, Any] = {tensor.key: _describe(tensor) for tensor in tensors}
    described |= {key: Instance(Global(_DCP, "BytesStorageMetadata"), {}) for key in objects}
    storage = [(_index(tensor.key, chunk.offsets), chunk.record) for tensor in tensors for chunk in tensor.chunks]
    storage += [(_index(key, None), record) for key, record in objects.items()]
    state = {
        "state_dict_metadata": described,
        "planner_data": None,
        "storage_data": Items(tuple((index, _storage(record)) for index, record in storage)),
        "storage_meta": None,
        "version": "1.0.0",
        "mcore_data": {},
    }
    return dumps(Instance(Global(_DCP, "Metadata"), state))


def _describe(tensor: StackedTensor) -> Instance:
    layout = Call(Global("torch.serialization", "_get_layout"), ("torch.strided",))
    contiguous = Call(Global(_DCP, "_MEM_FORMAT_ENCODING"), (0,))
    properties = Instance(
        Global(_DCP, "TensorProperties"), (torch_dtype(tensor.dtype), layout, False, contiguous, False)
    )
    chunks = [
        Instance(Global(_DCP, "ChunkStorageMetadata"), {"offsets": _size(chunk.offsets), "sizes": _size(chunk.sizes)})
        for chunk in tensor.chunks
    ]
    state = {"properties": properties, "size": _size(tensor.shape), "chunks": chunks}
    return Instance(Global(_DCP, "TensorStorageMetadata"), state)


def _size(sizes: tuple[int, ...]) -> Call:
    return Call(_SIZE, (sizes,))


def _index(key: str, offsets: tuple[int, ...] | None) -> Instance:
    state = {"fqn": key, "offset": None if offsets is None else _size(offsets), "index": None}
    return Instance(Global(_DCP, "MetadataIndex"), state)


def _storage(record: Record) -> Instance:
    state = {"relative_path": record.file, "offset": record.offset, "length": record.length}
    return Instance(Global("torch.distributed.checkpoint.filesystem", "_StorageInfo"), state)


_ALLOWED = {
    _DCP: {
        "Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "BytesStorageMetadata",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.planner": {"SavePlan", "WriteItem", "WriteItemType", "TensorWriteData"},
    "megatron.core.dist_checkpointing.strategies.torch": {"MCoreMetadata", "MCoreSavePlan"},
    "torch": {
        "Size", "device", *WEIGHTS.values(), "float64", "int64", "int32", "int16", "int8", "uint8", "bool",
        "float8_e4m3fn", "float8_e5m2", "FloatStorage", "HalfStorage", "BFloat16Storage", "DoubleStorage",
        "LongStorage", "IntStorage", "ShortStorage", "CharStorage", "ByteStorage", "BoolStorage",
    },
    "torch.serialization": {"_get_layout"},
    "torch._utils": {"_rebuild_tensor_v2"},
    "pathlib": {"PosixPath", "PurePosixPath", "Path"},
    "argparse": {"Namespace"},
    "types": {"SimpleNamespace"},
    "signal": {"Signals"},
}  # fmt: skip
_ALLOWED_OWNERS = ("megatron.core.", "megatron.training.", "megatron.bridge.", "nemo.lightning.")
"""Frameworks whose enums and dataclasses lie among the arguments in a `common.pt`."""


def _allow(module: str, name: str) -> Any:
    if (module, name) == ("collections", "OrderedDict"):
        return dict
    if name in _ALLOWED.get(module, ()) or module.startswith(_ALLOWED_OWNERS):
        return stand_in(module, name)
    return None


def read_metadata(data: bytes, where: str) -> Metadata:
    """Read `.metadata`. Raises RequestError on a name outside the allow-list and on any other shape of content."""
    found = loads(data, _allow, where)
    try:
        described: dict[str, Any] = found.state["state_dict_metadata"]
        stored: dict[Any, Any] = found.state["storage_data"]
        records = {_place(index): _record(info, where) for index, info in stored.items()}
        tensors = {
            str(key): _stacked(str(key), value.state, records)
            for key, value in described.items()
            if value.name == "TensorStorageMetadata"
        }
        flattened = frozenset(str(key) for key, value in (found.state.get("mcore_data") or {}).items() if value)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise RequestError(where, f"not torch_dist metadata ({type(error).__name__}: {str(error)[:60]!r})") from None
    objects = {key: record for (key, offsets), record in records.items() if offsets is None}
    return Metadata(tensors, objects, flattened)


def _place(index: StandIn) -> tuple[str, tuple[int, ...] | None]:
    key, offsets = index.state["fqn"], index.state.get("offset")
    if not isinstance(key, str):
        raise ValueError("a key that is no text")
    return key, None if offsets is None else _numbers(offsets)


def _numbers(size: StandIn) -> tuple[int, ...]:
    """The numbers of a torch.Size."""
    (values,) = size.arguments
    if not all(type(value) is int and 0 <= value < 2**62 for value in values):
        raise ValueError("a size that is not natural numbers")
    return tuple(values)


def _record(info: StandIn, where: str) -> Record:
    name, offset, length = info.state["relative_path"], info.state["offset"], info.state["length"]
    if not isinstance(name, str) or not _is_bare(name):
        told = name[:60] if isinstance(name, str) else type(name).__name__
        raise RequestError(
            where, f"it points to the file {told!r}, outside its directory", "do not load this checkpoint"
        )
    if type(offset) is not int or type(length) is not int or offset < 0 or length < 0:
        numbers = [value if type(value) is int else type(value).__name__ for value in (offset, length)]
        raise RequestError(where, f"it points to bytes {numbers[0]} and length {numbers[1]} of {name[:60]!r}")
    return Record(name, offset, length)


def _is_bare(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _stacked(key: str, state: Any, records: Mapping[tuple[str, tuple[int, ...] | None], Record]) -> StackedTensor:
    dtype = state["properties"].state[0].name
    shape = _numbers(state["size"])
    chunks = []
    for chunk in state["chunks"]:
        offsets, sizes = _numbers(chunk.state["offsets"]), _numbers(chunk.state["sizes"])
        if (key, offsets) not in records:
            raise ValueError(f"{key} has no stored chunk at {list(offsets)}")
        chunks.append(Chunk(offsets, sizes, records[key, offsets]))
    return StackedTensor(key, FROM_TORCH.get(dtype, dtype), shape, tuple(chunks))


@dataclass(frozen=True, slots=True)
class Payload:
    """The contiguous bytes of one chunk."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


def find_payload(archive: OpenArchive) -> Payload:
    """Where an archive keeps its one tensor's bytes, and what they are. Raises RequestError where it keeps none."""
    where = archive.error("").where
    if "byteorder" in archive.members and archive.read("byteorder") != b"little":
        raise archive.error("it was written on a big-endian machine")
    call = loads(archive.read("data.pkl"), _allow, where)
    try:
        if call.name != _REBUILD.name:
            raise ValueError("no tensor")
        storage, first, shape, strides, *_ = call.arguments
        _, storage_class, key, _, _ = storage.identity
        shape, strides = tuple(shape), tuple(strides)
        dtype = _STORAGE_DTYPES[storage_class.name]
        whole = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        contiguous = all(size == 1 or stride == step for size, stride, step in zip(shape, strides, whole, strict=True))
        numbers = all(type(number) is int and number >= 0 for number in (first, *shape))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise archive.error(f"its record is not a tensor of weights ({type(error).__name__})") from None
    if not contiguous or not numbers:
        raise archive.error("its record is not a contiguous tensor")
    member = archive.members.get(f"data/{key}")
    offset, size = first * ITEM_BYTES[dtype], math.prod(shape) * ITEM_BYTES[dtype]
    if member is None or offset + size > member.bytes:
        raise archive.error("its record has fewer bytes than its shape needs")
    return Payload(dtype, shape, member.offset + offset)


def read_common(archive: OpenArchive) -> dict[str, Any]:
    """What `common.pt` holds; objects of frameworks are stand-ins. Raises RequestError on a name outside the list."""
    found = loads(archive.read("data.pkl"), _allow, archive.error("").where)
    if not isinstance(found, dict):
        raise archive.error("it holds no mapping")
    return found
