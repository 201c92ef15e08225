"""What we write is what the installed torch writes and reads: a torch that changes its private format fails here."""

import argparse
import io
import os
import pickle
import pickletools
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from checkpoints_conversion.pickles import Call, Global, Items, dumps
from checkpoints_conversion.torch_format import (
    Chunk,
    Record,
    StackedTensor,
    find_payload,
    metadata_bytes,
    namespace,
    object_archive,
    read_common,
    read_metadata,
    tensor_archive,
    torch_dtype,
)
from checkpoints_conversion.torch_zip import Archive, OpenArchive

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def opcodes(data: bytes) -> list[tuple[str, Any]]:
    """A pickle's operations, without how it numbers what it repeats."""
    left_out = {"BINPUT", "LONG_BINPUT", "MEMOIZE", "PROTO", "MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
    return [(op.name, argument) for op, argument, _ in pickletools.genops(data) if op.name not in left_out]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 5, 8), (3,), (1, 1, 2, 3)])
def test_a_record_is_what_torch_saves(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = torch.randn(shape).to(DTYPES[dtype])
    payload = tensor.view(torch.uint8).numpy().tobytes()
    archive = tensor_archive(dtype, shape)
    crc = zlib.crc32(payload)
    data = archive.head(crc) + payload + archive.tail(crc)
    assert len(data) == archive.length
    assert len(archive.head()) % 64 == 0
    loaded = torch.load(io.BytesIO(data), weights_only=True)
    assert loaded.dtype == tensor.dtype
    assert torch.equal(loaded, tensor)
    saved = io.BytesIO()
    torch.save(tensor, saved)
    with zipfile.ZipFile(saved) as theirs, zipfile.ZipFile(io.BytesIO(data)) as ours:
        assert ours.testzip() is None
        assert opcodes(ours.read("archive/data.pkl")) == opcodes(theirs.read("archive/data.pkl"))
        for name in ("archive/byteorder", "archive/version", "archive/data/0"):
            assert ours.read(name) == theirs.read(name)
    for content in (data, saved.getvalue()):
        (tmp_path / "file").write_bytes(b"before" + content)
        descriptor = os.open(tmp_path / "file", os.O_RDONLY)
        found = find_payload(OpenArchive(descriptor, 6, len(content), "here"))
        os.close(descriptor)
        assert (found.dtype, found.shape) == (dtype, shape)
        assert (tmp_path / "file").read_bytes()[found.offset :][: len(payload)] == payload


def test_a_view_of_a_larger_storage_is_found(tmp_path: Path) -> None:
    torch.save(torch.arange(20, dtype=torch.float32).reshape(5, 4)[2:4], tmp_path / "file")
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    found = find_payload(OpenArchive(descriptor, 0, (tmp_path / "file").stat().st_size, "here"))
    os.close(descriptor)
    assert (tmp_path / "file").read_bytes()[found.offset :][:8] == torch.tensor([8.0, 9.0]).numpy().tobytes()


def test_more_than_4_gib(tmp_path: Path) -> None:
    """The sizes need 64 bits: the file is sparse, and torch maps it without reading it."""
    shape = (70_000, 65_536)
    archive = tensor_archive("F16", shape)
    with open(tmp_path / "large", "wb") as handle:
        handle.write(archive.head())
        handle.seek(archive.payload_bytes or 0, os.SEEK_CUR)
        handle.write(archive.tail())
    assert (tmp_path / "large").stat().st_size == archive.length > 2**33
    loaded = torch.load(tmp_path / "large", mmap=True, weights_only=True)
    assert loaded.shape == shape
    assert not loaded[-1].any()
    with zipfile.ZipFile(tmp_path / "large") as found:
        assert found.getinfo("archive/data/0").file_size == 2 * 70_000 * 65_536
    descriptor = os.open(tmp_path / "large", os.O_RDONLY)
    assert find_payload(OpenArchive(descriptor, 0, archive.length, "here")).offset == len(archive.head())
    os.close(descriptor)


def test_metadata_is_torchs_own_classes(tmp_path: Path) -> None:
    chunk = Chunk((1, 0), (1, 8), Record("__0_0.distcp", 64, 1000))
    written = metadata_bytes([StackedTensor("a.weight", "BF16", (2, 8), (chunk,))], {"a/shard_0_1": chunk.record})
    (tmp_path / ".metadata").write_bytes(written)
    found = FileSystemReader(tmp_path).read_metadata()
    assert isinstance(found, Metadata)
    properties = found.state_dict_metadata["a.weight"].properties
    assert (properties.dtype, properties.layout) == (torch.bfloat16, torch.strided)
    assert properties.memory_format == torch.contiguous_format
    assert found.storage_data[MetadataIndex("a.weight", [1, 0])] == _StorageInfo("__0_0.distcp", 64, 1000)
    ours = read_metadata(written, "here")
    assert read_metadata(pickle.dumps(found), "here") == ours
    assert ours.tensors["a.weight"].chunks == (chunk,)
    assert ours.objects == {"a/shard_0_1": chunk.record}


def test_common_state(tmp_path: Path) -> None:
    state = {"args": namespace({"dtype": torch_dtype("BF16"), "rate": 0.5}), "iteration": 3, "big": 2**40, "low": -7}
    (tmp_path / "common.pt").write_bytes(object_archive(state).whole())
    with torch.serialization.safe_globals([argparse.Namespace]):
        found = torch.load(tmp_path / "common.pt", weights_only=True)
    assert found == {
        "args": argparse.Namespace(dtype=torch.bfloat16, rate=0.5), "iteration": 3, "big": 2**40, "low": -7
    }  # fmt: skip
    torch.save(found, tmp_path / "common.pt")
    descriptor = os.open(tmp_path / "common.pt", os.O_RDONLY)
    again = read_common(OpenArchive(descriptor, 0, (tmp_path / "common.pt").stat().st_size, "here"))
    os.close(descriptor)
    assert again["args"].state["rate"] == 0.5
    assert again["iteration"] == 3


def test_every_plain_value_survives() -> None:
    numbers = [0, 255, 256, -1, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63, 0.1]
    value = {
        "none": None,
        "flags": [True, False],
        "text": "é" * 300,
        "empty": [(), [], {}],
        "deep": [[numbers, (1,) * 4]],
    }
    assert pickle.loads(dumps(value)) == value  # noqa: S301
    nodes = Items(((Call(Global("builtins", "complex"), (1, 2)), "key"),))
    assert pickle.loads(dumps(nodes)) == {complex(1, 2): "key"}  # noqa: S301
    with pytest.raises(TypeError):
        dumps(object())


def test_an_archive_without_storage() -> None:
    archive = Archive(dumps([None]), None)
    assert torch.load(io.BytesIO(archive.whole()), weights_only=True) == [None]
    assert len(archive.whole()) == archive.length
