"""Crafted and damaged checkpoints: each is refused in one line, runs no code and writes nothing outside its place."""

import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import edit_json, make_model, to_huggingface, to_megatron

from checkpoints_conversion.safetensors import read_header
from checkpoints_conversion.torch_format import read_metadata
from checkpoints_conversion.verification import check
from reasonforge.errors import RequestError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in both formats."""
    place = tmp_path_factory.mktemp("made")
    make_model(place / "hf", "qwen2")
    to_megatron(place / "hf", place / "megatron")
    return place


class Gadget:
    """What an attacker puts into a pickle: code that runs when it is loaded."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


def write_header(path: Path, header: Any, payload: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + payload)


def entry(begin: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BAD_HEADERS: dict[str, Callable[[Path], object]] = {
    "empty file": lambda path: path.write_bytes(b""),
    "header longer than the file": lambda path: path.write_bytes(struct.pack("<Q", 2**63) + b"{}"),
    "header of 200 MB": lambda path: path.write_bytes(struct.pack("<Q", 200_000_000) + b"{}"),
    "not JSON": lambda path: write_header(path, b"{not json"),
    "deep JSON": lambda path: write_header(path, b"[" * 100_000),
    "a list": lambda path: write_header(path, []),
    "not UTF-8": lambda path: write_header(path, b'{"\xff": 1}'),
    "a key twice": lambda path: write_header(path, b'{"a": 1, "a": 2}'),
    "beyond the end": lambda path: write_header(path, {"a": entry(0, 8, [2])}, b"1234"),
    "bytes behind the last": lambda path: write_header(path, {"a": entry(0, 4, [1])}, b"12345678"),
    "overlap": lambda path: write_header(path, {"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, b"x" * 12),
    "hole": lambda path: write_header(path, {"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, b"x" * 12),
    "backwards": lambda path: write_header(path, {"a": entry(4, 0, [1])}, b"x" * 4),
    "negative shape": lambda path: write_header(path, {"a": entry(0, 4, [-1, -1])}, b"x" * 4),
    "true as a size": lambda path: write_header(path, {"a": entry(0, 4, [True])}, b"x" * 4),
    "shape that overflows": lambda path: write_header(path, {"a": entry(0, 4, [2**62, 2**62])}, b"x" * 4),
    "unknown type": lambda path: write_header(path, {"a": entry(0, 4, [1], "F31")}, b"x" * 4),
    "metadata of numbers": lambda path: write_header(path, {"__metadata__": {"a": 1}}),
    "no offsets": lambda path: write_header(path, {"a": {"dtype": "F32", "shape": []}}),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_safetensors_headers(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    BAD_HEADERS[case](path)
    with pytest.raises(RequestError, match="not a whole safetensors file") as error:
        read_header(path)
    assert "\n" not in str(error.value)


def test_an_index_cannot_point_outside(made: Path, tmp_path: Path) -> None:
    for place in ("../outside.safetensors", "/etc/passwd.safetensors", "..", "a/b.safetensors"):
        directory = tmp_path / str(abs(hash(place)))
        shutil.copytree(made / "hf", directory)
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
        with pytest.raises(RequestError, match="which is no file of this directory"):
            to_megatron(directory, tmp_path / "out")


def test_an_index_that_disagrees_with_its_shards(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "hf", tmp_path / "hf")
    names = list(read_header(made / "hf/model.safetensors").tensors)
    index = tmp_path / "hf/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names[1:], "model.safetensors")}))
    with pytest.raises(RequestError, match="but the index does not list it"):
        to_megatron(tmp_path / "hf", tmp_path / "out")
    index.write_text(json.dumps({"weight_map": dict.fromkeys([*names, "more"], "model.safetensors")}))
    with pytest.raises(RequestError, match="which does not hold it"):
        to_megatron(tmp_path / "hf", tmp_path / "out")


def copied(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "megatron", tmp_path / "megatron")
    return tmp_path / "megatron/iter_0000001"


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_code_in_metadata_does_not_run(protocol: int, made: Path, tmp_path: Path) -> None:
    weights = copied(made, tmp_path)
    (weights / ".metadata").write_bytes(pickle.dumps(Gadget(tmp_path / "proof"), protocol))
    with pytest.raises(RequestError, match=r"names (posix|nt)\.system, which no checkpoint needs"):
        to_huggingface(tmp_path / "megatron", tmp_path / "out")
    assert not (tmp_path / "proof").exists()
    assert not (tmp_path / "out").exists()


GADGETS = {
    "eval": b"cbuiltins\neval\n(Vopen('proof','w')\ntR.",
    "getattr": b"cbuiltins\ngetattr\n(ctorch\nSize\nV__reduce__\ntR.",
    "dotted name": b"\x80\x04\x8c\x05torch\x8c\x0fhub.load_script\x93.",
    "a torch function": b"ctorch\nload\n(Vx\ntR.",
    "a torch class that imports": b"ctorch.utils.model_zoo\nload_url\n(Vx\ntR.",
    "an old instance": b"(ios\nsystem\n(Vx\n.",
    "extension code": b"\x82\x01.",
    "truncated": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    "huge bytes": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.",
    "nothing": b"",
    "a text": b"Vtext\n.",
}


@pytest.mark.parametrize("case", GADGETS)
def test_pickles_in_metadata(case: str, made: Path, tmp_path: Path) -> None:
    weights = copied(made, tmp_path)
    (weights / ".metadata").write_bytes(GADGETS[case])
    with pytest.raises(RequestError) as error:
        to_huggingface(tmp_path / "megatron", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert ".metadata" in str(error.value)


def test_code_in_common_does_not_run(made: Path, tmp_path: Path) -> None:
    weights = copied(made, tmp_path)
    torch.save({"args": Gadget(tmp_path / "proof")}, weights / "common.pt")
    with pytest.raises(RequestError, match=r"common\.pt.*system, which no checkpoint needs"):
        to_huggingface(tmp_path / "megatron", tmp_path / "out")
    assert not (tmp_path / "proof").exists()


def test_code_in_a_record_does_not_run(made: Path, tmp_path: Path) -> None:
    """A record is swapped for an archive whose pickle calls the system; `.metadata` points to it."""
    weights = copied(made, tmp_path)
    torch.save(Gadget(tmp_path / "proof"), weights / "evil")
    evil = (weights / "evil").read_bytes()
    found = pickle.loads((weights / ".metadata").read_bytes())  # noqa: S301
    for index, info in found.storage_data.items():
        if index.fqn == "embedding.word_embeddings.weight":
            size = (weights / info.relative_path).stat().st_size
            with open(weights / info.relative_path, "ab") as handle:
                handle.write(evil)
            info.offset, info.length = size, len(evil)
    (weights / ".metadata").write_bytes(pickle.dumps(found))
    with pytest.raises(RequestError, match="system, which no checkpoint needs"):
        to_huggingface(tmp_path / "megatron", tmp_path / "out")
    assert not (tmp_path / "proof").exists()


def edit_metadata(weights: Path, change: Callable[[Any], None]) -> None:
    found = pickle.loads((weights / ".metadata").read_bytes())  # noqa: S301
    change(found)
    (weights / ".metadata").write_bytes(pickle.dumps(found))


def first_record(found: Any) -> Any:
    return next(info for index, info in found.storage_data.items() if index.fqn == "embedding.word_embeddings.weight")


def set_record(**values: Any) -> Callable[[Any], None]:
    def change(found: Any) -> None:
        for name, value in values.items():
            setattr(first_record(found), name, value)

    return change


def drop_chunk(found: Any) -> None:
    found.state_dict_metadata["decoder.layers.mlp.linear_fc1.weight"].chunks.pop()


def repeat_chunk(found: Any) -> None:
    chunks = found.state_dict_metadata["decoder.layers.mlp.linear_fc1.weight"].chunks
    chunks[1] = chunks[0]


def change_shape(found: Any) -> None:
    found.state_dict_metadata["decoder.layers.mlp.linear_fc1.weight"].size = torch.Size([2, 96, 31])


def change_type(found: Any) -> None:
    found.state_dict_metadata["decoder.layers.mlp.linear_fc1.weight"].properties.dtype = torch.bfloat16


def drop_tensor(found: Any) -> None:
    del found.state_dict_metadata["decoder.layers.mlp.linear_fc1.weight"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (set_record(relative_path="../../hf/model.safetensors"), "outside its directory"),
        (set_record(relative_path="/etc/passwd"), "outside its directory"),
        (set_record(relative_path=".."), "outside its directory"),
        (set_record(relative_path="__9_9.distcp"), "missing, though .metadata points to it"),
        (set_record(offset=-5), "points to bytes -5"),
        (set_record(offset=2**40), "lies beyond the end"),
        (set_record(offset=17), "no torch archive at byte 17"),
        (set_record(length=10), "no torch archive at byte"),
        (drop_chunk, "do not tile it"),
        (repeat_chunk, "do not tile it"),
        (change_shape, "but the model's is [2, 96, 32]"),
        (change_type, "but BF16"),
        (drop_tensor, "no decoder.layers.mlp.linear_fc1.weight[0]"),
    ],
)
def test_metadata_that_lies(change: Callable[[Any], None], told: str, made: Path, tmp_path: Path) -> None:
    edit_metadata(copied(made, tmp_path), change)
    with pytest.raises(RequestError) as error:
        to_huggingface(tmp_path / "megatron", tmp_path / "out")
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_cut_short(made: Path, tmp_path: Path) -> None:
    weights = copied(made, tmp_path)
    os.truncate(weights / "__3_0.distcp", 3000)
    with pytest.raises(RequestError, match="which is cut short"):
        to_huggingface(tmp_path / "megatron", tmp_path / "out")


def test_a_compressed_record_is_refused(made: Path, tmp_path: Path) -> None:
    weights = copied(made, tmp_path)
    with zipfile.ZipFile(weights / "common.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}." + b" " * 5000)
    with pytest.raises(RequestError, match="not stored as torch stores it"):
        to_huggingface(tmp_path / "megatron", tmp_path / "out")


def test_an_iteration_that_was_interrupted_is_not_taken(made: Path, tmp_path: Path) -> None:
    weights = copied(made, tmp_path)
    later = weights.parent / "iter_0000200"
    shutil.copytree(weights, later)
    (later / "metadata.json").unlink()
    (weights.parent / "latest_checkpointed_iteration.txt").write_text("200")
    to_huggingface(tmp_path / "megatron", tmp_path / "out")
    (weights / ".metadata").unlink()
    with pytest.raises(RequestError, match="no finished checkpoint"):
        to_huggingface(tmp_path / "megatron", tmp_path / "other")


def test_a_tied_model_with_a_trained_output_layer(made: Path, tmp_path: Path) -> None:
    copied(made, tmp_path)
    edit_json(tmp_path / "megatron/huggingface/config.json", tie_word_embeddings=True)
    with pytest.raises(RequestError, match="says tie_word_embeddings"):
        to_huggingface(tmp_path / "megatron", tmp_path / "out")


def test_nan_and_infinity_are_counted(made: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from tiny_checkpoints import counter

    assert check(made / "megatron", None, counter).good
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        directory = tmp_path / str(dtype)
        shutil.copytree(made / "hf", directory)
        state = {name: tensor.to(dtype) for name, tensor in load_file(made / "hf/model.safetensors").items()}
        state["model.norm.weight"][:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
        save_file(state, directory / "model.safetensors")
        verdict = check(directory, None, counter)
        assert (verdict.nan, verdict.infinite) == (1, 2)
        assert verdict.problems == ["model.norm.weight: 1 NaN, 2 infinite"]


def test_a_spoiled_pickle_is_read_or_refused(made: Path) -> None:
    """Bytes changed at random, or cut off: never another exception, nor memory or time without end."""
    whole = (made / "megatron/iter_0000001/.metadata").read_bytes()
    draw = random.Random(0)
    refused = []
    for number in range(600):
        data = bytearray(whole[: draw.randrange(len(whole))] if number % 3 == 0 else whole)
        for _ in range(draw.randrange(1, 5) if data else 0):
            data[draw.randrange(len(data))] = draw.randrange(256)
            data[draw.randrange(min(len(data), 800))] = draw.randrange(256)
        try:
            read_metadata(bytes(data), "here")
        except RequestError as error:
            refused.append(str(error))
    assert len(refused) > 400
    assert all(message.isprintable() and len(message) < 400 for message in refused)
