"""Checkpoints made to do harm, through the command itself: each gets one line and exit code 2, and nothing of it runs.

`test_hostile` has more cases, of single files and functions.
"""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from large_model import ROOT
from safetensors.torch import load_file, save_file
from test_hostile import GADGETS, Gadget, edit_metadata, entry, first_record, set_record, write_header
from tiny_checkpoints import edit_json, make_model, to_megatron

from checkpoints_conversion.safetensors import read_header

FC1 = "decoder.layers.mlp.linear_fc1.weight"


def weights(root: Path) -> Path:
    return root / "megatron/iter_0000001"


def metadata(data: bytes) -> Callable[[Path], object]:
    return lambda root: (weights(root) / ".metadata").write_bytes(data)


def lie(change: Callable[[Any], None]) -> Callable[[Path], None]:
    return lambda root: edit_metadata(weights(root), change)


def record_of_the_embedding(root: Path) -> tuple[Path, int, int]:
    found = pickle.loads((weights(root) / ".metadata").read_bytes())  # noqa: S301
    info = first_record(found)
    return weights(root) / info.relative_path, info.offset, info.length


def replace_record(make: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Put another archive in the place of the embedding's."""

    def change(root: Path) -> None:
        path, offset, length = record_of_the_embedding(root)
        with open(path, "r+b") as handle:
            handle.seek(offset)
            made = make(handle.read(length))
            end = handle.seek(0, os.SEEK_END)
            handle.write(made)
        edit_metadata(weights(root), set_record(offset=end, length=len(made)))

    return change


def rezipped(change: Callable[[zipfile.ZipFile, str, bytes], None]) -> Callable[[bytes], bytes]:
    def make(data: bytes) -> bytes:
        import io

        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
            for name in old.namelist():
                change(new, name, old.read(name))
        return out.getvalue()

    return make


def twice(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    for _ in range(2 if name.endswith("/0") else 1):
        archive.writestr(zipfile.ZipInfo(name), data)


def with_code(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name), b"cos\nsystem\n(Vtouch proof\ntR." if name.endswith("data.pkl") else data)


def patched(mark: bytes, place: int, value: bytes) -> Callable[[bytes], bytes]:
    """The archive with bytes of its last record of a kind changed."""

    def make(data: bytes) -> bytes:
        start = data.rindex(mark) + place
        return data[:start] + value + data[start + len(value) :]

    return make


def link(name: str, target: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / name
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return change


def pipe(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / name).unlink(missing_ok=True)
        os.mkfifo(root / name)

    return change


def directory(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / name).unlink()
        (root / name).mkdir()

    return change


def text(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(content.encode() if isinstance(content, str) else content)


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda root: edit_json(root / "megatron/huggingface/config.json", **changes)


def index(places: dict[str, Any]) -> Callable[[Path], object]:
    return text("hf/model.safetensors.index.json", json.dumps({"weight_map": places}))


def two_shards(root: Path) -> None:
    """Both shards hold the embedding."""
    state = load_file(root / "hf/model.safetensors")
    (root / "hf/model.safetensors").unlink()
    first = {name: tensor for name, tensor in state.items() if "layers.0" in name or "embed" in name}
    second = {name: tensor for name, tensor in state.items() if name not in first or "embed" in name}
    save_file(first, root / "hf/a.safetensors")
    save_file(second, root / "hf/b.safetensors")
    index({**dict.fromkeys(second, "b.safetensors"), **dict.fromkeys(first, "a.safetensors")})(root)


def header(entries: Any, payload: bytes = b"") -> Callable[[Path], None]:
    return lambda root: write_header(root / "hf/model.safetensors", entries, payload)


def odd_name(root: Path) -> None:
    state = load_file(root / "hf/model.safetensors")
    save_file({**state, "a\n\x1b[2Jerror: b": torch.zeros(1)}, root / "hf/model.safetensors")


def chunks(found: Any, key: str = FC1) -> Any:
    return found.state_dict_metadata[key].chunks


def overlap(found: Any) -> None:
    """The second of two chunks begins in the first; the first is shorter, so that the area is right."""
    one, other = chunks(found)[:2]
    one.sizes = torch.Size([1, 48, 32])
    other.offsets, other.sizes = torch.Size([0, 24, 0]), torch.Size([1, 48, 32])
    record = next(info for at, info in found.storage_data.items() if at.fqn == FC1)
    from torch.distributed.checkpoint.metadata import MetadataIndex

    found.storage_data[MetadataIndex(FC1, other.offsets)] = record


def negative(found: Any) -> None:
    chunks(found)[0].sizes = torch.Size([1, -48, 32])


def giant(found: Any) -> None:
    chunks(found)[0].sizes = torch.Size([1, 2**61, 2**61])


def giant_tensor(found: Any) -> None:
    found.state_dict_metadata[FC1].size = torch.Size([2, 2**61, 2**61])


NESTED = b"\x80\x04)" + b"\x85" * 1_000_000
DOUBLED = b"\x80\x02)" + b"".join(b"q\x01h\x01\x86" for _ in range(60))
BIG_MEMO = b"\x80\x02Nr\xff\xff\xff\x7f."
STATE = b"}(X\x13\x00\x00\x00state_dict_metadata}X\x0c\x00\x00\x00storage_data"
HEAD = b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81" + STATE
INDEX = b"ctorch.distributed.checkpoint.metadata\nMetadataIndex\n)\x81}(X\x03\x00\x00\x00fqn"
STORAGE = (
    b"ctorch.distributed.checkpoint.filesystem\n_StorageInfo\n)\x81}("
    b"X\x06\x00\x00\x00offsetK\x00X\x06\x00\x00\x00lengthK\x00X\x0d\x00\x00\x00relative_path"
)

METADATA_CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle: os.system by REDUCE": (
        lambda root: metadata(pickle.dumps(Gadget(root / "proof"), 2))(root), "names posix.system"),
    "pickle: builtins.eval": (metadata(GADGETS["eval"]), "names builtins.eval"),
    "pickle: builtins.getattr": (metadata(GADGETS["getattr"]), "names builtins.getattr"),
    "pickle: a dotted name below an allowed module": (metadata(GADGETS["dotted name"]), "names torch.hub.load_script"),
    "pickle: STACK_GLOBAL of subprocess.Popen": (
        metadata(b"\x80\x04\x8c\x0asubprocess\x8c\x05Popen\x93."), "names subprocess.Popen"),
    "pickle: nested persistent ids": (metadata(b"\x80\x02" + b"N" + b"\x85Q" * 2000 + b"."), "not torch_dist metadata"),
    "pickle: a persistent id that names code": (metadata(b"\x80\x02cos\nsystem\n\x85Q."), "names os.system"),
    "pickle: a tuple a million deep": (metadata(NESTED + b"."), "not torch_dist metadata"),
    "pickle: that tuple as a key": (metadata(NESTED.replace(b")", b"})", 1) + b"Ns."), "not a readable pickle"),
    "pickle: that tuple in a set": (metadata(b"\x80\x04\x8f(" + NESTED[2:] + b"\x90."), "not a readable pickle"),
    "pickle: pairs with such keys for OrderedDict": (
        metadata(b"\x80\x02ccollections\nOrderedDict\n]" + NESTED[2:] + b"N\x86a\x85R."), "not a readable pickle"),
    "pickle: 2^60 items by the memo": (metadata(DOUBLED + b"."), "not torch_dist metadata"),
    "pickle: 2^60 items by the memo, as a key": (
        metadata(b"\x80\x02}" + DOUBLED[2:] + b"Ns."), "not a readable pickle"),
    "pickle: 2^60 items by the memo, as a file's name": (
        metadata(HEAD + b"}" + INDEX + b"X\x01\x00\x00\x00aub" + STORAGE + DOUBLED[2:] + b"ubsub."),
        "points to the file 'tuple'"),
    "pickle: 2^60 items by the memo, as a tensor's name": (
        metadata(HEAD + b"}" + INDEX + DOUBLED[2:] + b"ubNsub."), "not torch_dist metadata"),
    "pickle: memo number 2^31": (metadata(BIG_MEMO), "not torch_dist metadata"),
    "pickle: a bytearray of 2^62": (
        metadata(b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"."), "not a readable pickle"),
    "pickle: a frame of 2^62": (
        metadata(b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N."), "not torch_dist metadata"),
    "pickle: lists a million deep": (
        metadata(b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b"."), "not torch_dist metadata"),
    ".metadata of 2 GB": (
        lambda root: os.truncate(weights(root) / ".metadata", 2 << 30), "more than any checkpoint needs"),
    ".metadata is a pipe": (pipe("megatron/iter_0000001/.metadata"), "no iteration with .metadata"),
    "chunks overlap": (lie(overlap), "do not tile it"),
    "a chunk is missing in the middle": (lie(lambda found: chunks(found).pop(1)), "do not tile it"),
    "a chunk of negative size": (lie(negative), "not torch_dist metadata"),
    "a chunk of 2^122 numbers": (lie(giant), "but F32 [1, "),
    "a tensor of 2^122 numbers": (lie(giant_tensor), "but the model's is [2, 96, 32]"),
    "a record at a negative place": (lie(set_record(offset=-5)), "points to bytes -5"),
    "a record of 2^62 bytes": (lie(set_record(length=2**62)), "lies beyond the end"),
    "a record in ../": (lie(set_record(relative_path="../../hf/model.safetensors")), "outside its directory"),
    "a record in a file named with a line break": (
        lie(set_record(relative_path="a\nb")), "missing, though .metadata points to it"),
}  # fmt: skip

FILE_CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "zip: two members of one name": (replace_record(rezipped(twice)), "has two members of one name"),
    "zip: code in data.pkl": (replace_record(rezipped(with_code)), "names os.system"),
    "zip: a member's header out of bounds": (
        replace_record(patched(b"PK\1\2", 42, struct.pack("<I", 0x7FFFFFFF))), "not stored as torch stores it"),
    "zip: a member of 4 GB in a small archive": (
        replace_record(patched(b"PK\1\2", 20, struct.pack("<2I", 0xFFFFFFF0, 0xFFFFFFF0))),
        "reaches beyond its archive"),
    "zip: a directory of 2^40 bytes": (
        replace_record(patched(b"PK\6\6", 40, struct.pack("<Q", 2**40))), "no torch archive at byte"),
    "zip: a compressed member": (
        replace_record(patched(b"PK\1\2", 10, struct.pack("<H", 8))), "not stored as torch stores it"),
    "common.pt: code": (
        lambda root: torch.save({"args": Gadget(root / "proof")}, weights(root) / "common.pt"), "names posix.system"),
    "a .distcp file is a pipe": (pipe("megatron/iter_0000001/__1_0.distcp"), "not a regular file"),
    "a .distcp file is a device": (link("megatron/iter_0000001/__1_0.distcp", "/dev/zero"), "not a regular file"),
    "a .distcp file is a directory": (directory("megatron/iter_0000001/__1_0.distcp"), "not a regular file"),
    "a .distcp file is a link to another file": (
        link("megatron/iter_0000001/__1_0.distcp", "/etc/passwd"), "is cut short"),
    "metadata.json 100,000 deep": (text("megatron/iter_0000001/metadata.json", "[" * 100_000), "not JSON"),
    "metadata.json with a number of 5,000 digits": (
        text("megatron/iter_0000001/metadata.json", "9" * 5000), "not JSON"),
    "the tokenizer is a link to a private file": (
        link("megatron/huggingface/tokenizer.json", "/etc/passwd"), "a link out of its directory"),
    "the configuration is a link to a private file": (
        link("megatron/huggingface/config.json", "/etc/passwd"), "not JSON"),
    "a licence that is a link to ../../hf": (
        link("megatron/huggingface/LICENSE", "../../hf/config.json"), "a link out of its directory"),
    "config.json: 2^31 heads": (
        config(num_attention_heads=2**31 - 1, num_key_value_heads=2**31 - 1),
        "num_attention_heads: found 2147483647"),
    "config.json: 2^31 layers": (
        config(num_hidden_layers=2**31 - 1), "but the model's is [2147483647, 32]"),
    "config.json is not UTF-8": (text("megatron/huggingface/config.json", b'{"\xff": 1}'), "not UTF-8"),
}  # fmt: skip

IMPORT_CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "index: ../": (index({"a": "../outside.safetensors"}), "which is no file of this directory"),
    "index: an absolute path": (index({"a": "/etc/passwd.safetensors"}), "which is no file of this directory"),
    "index: a number for a file": (index({"a": 7}), "which is no file of this directory"),
    "index 100,000 deep": (text("hf/model.safetensors.index.json", '{"a":' * 100_000), "not JSON"),
    "one tensor in two shards": (
        two_shards, "b.safetensors holds model.embed_tokens.weight, but the index puts it in a.safetensors"),
    "a shard is a pipe": (pipe("hf/model.safetensors"), "so no weights that convert"),
    "a shard of an index is a pipe": (
        lambda root: (pipe("hf/a.safetensors")(root), index({"a": "a.safetensors"})(root)), "not a regular file"),
    "a shard of an index is a device": (
        lambda root: (link("hf/a.safetensors", "/dev/zero")(root), index({"a": "a.safetensors"})(root)),
        "not a regular file"),
    "a shard is a link to another file": (link("hf/model.safetensors", "/etc/passwd"), "not a whole safetensors file"),
    "a header of 99 MB": (header(b'{"' + b"a" * 99_000_000 + b'": 1}'), "has no dtype, shape and data_offsets"),
    "a header of 101 MB": (header(b'{"' + b"a" * 101_000_000 + b'": 1}'), "its header claims 101000007 bytes"),
    "a header 100,000 deep": (header(b'{"a":' * 100_000), "its header is not JSON"),
    "a header with a key twice": (header(b'{"a": 1, "a": 2}'), "its header is not JSON"),
    "a negative size": (header({"a": entry(0, 4, [-1, -1])}, b"1234"), "not natural numbers"),
    "a size of 2^124": (header({"a": entry(0, 4, [2**62, 2**62])}, b"1234"), "has 4 bytes where its shape needs"),
    "tensors that overlap": (
        header({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, b"x" * 12), "starts at byte 4, not at 8"),
    "a tensor beyond the end": (header({"a": entry(0, 8, [2])}, b"1234"), "its tensors end at byte"),
    "a name with a line break and an escape": (odd_name, "'a\\n\\x1b[2Jerror: b' has no place in"),
    "the tokenizer is a link to a private file": (
        link("hf/tokenizer.json", "/etc/passwd"), "a link out of its directory"),
    "templates in a linked directory": (link("hf/additional_chat_templates", "/etc"), "a link out of its directory"),
    "config.json is a pipe": (pipe("hf/config.json"), "no config.json"),
    "config.json 100,000 deep": (text("hf/config.json", "[" * 100_000), "not JSON"),
    "config.json of 300 MB": (
        lambda root: os.truncate(root / "hf/config.json", 300_000_000), "more than any checkpoint needs"),
    "config.json: a number of 5,000 digits": (text("hf/config.json", '{"a": ' + "9" * 5000 + "}"), "not JSON"),
    "config.json: Infinity heads": (
        text("hf/config.json", '{"model_type": "qwen2", "num_attention_heads": Infinity}'), "found inf"),
}  # fmt: skip

CASES = {
    **{name: ("export", "megatron", *case) for name, case in {**METADATA_CASES, **FILE_CASES}.items()},
    **{f"HF {name}": ("import", "hf", *case) for name, case in IMPORT_CASES.items()},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made")
    make_both(place)
    return place


def make_both(place: Path) -> None:
    make_model(place / "hf", "qwen2")
    to_megatron(place / "hf", place / "megatron")


def convert(case: str, made: Path, place: Path, verb: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command on a copy that is crafted, in a process of its own with 4 GB of memory: a crash is seen as one."""
    own, source, craft, _ = CASES[case]
    for name in ("hf", "megatron"):
        shutil.copytree(made / name, place / name)
    craft(place)
    verb = verb or own
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); "
        "from reasonforge.cli import main; main()"
    )
    targets = [place / "out"] if verb in ("import", "export") else []
    command = [sys.executable, "-c", script, "convert", verb, place / source, *targets]
    return subprocess.run(
        command, cwd=place, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_exit_code_2(case: str, made: Path, tmp_path: Path) -> None:
    done = convert(case, made, tmp_path)
    assert done.returncode == 2, done.stderr[-2000:]
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.isprintable()
    assert len(line) < 600
    assert CASES[case][3] in line
    assert done.stdout == ""
    assert not (tmp_path / "proof").exists()
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_what_is_good_passes(made: Path, tmp_path: Path) -> None:
    """The same way to call it, on what nobody has touched; and a link into the hub's cache is followed."""
    CASES["nothing"] = ("export", "megatron", Path.exists, "")
    assert convert("nothing", made, tmp_path / "a").returncode == 0
    cache = tmp_path / "b/models--a--b"
    (cache / "blobs").mkdir(parents=True)
    shutil.copytree(made / "hf", cache / "snapshots/1")
    for number, path in enumerate(sorted((cache / "snapshots/1").iterdir())):
        path.rename(cache / "blobs" / str(number))
        path.symlink_to(f"../../blobs/{number}")
    to_megatron(cache / "snapshots/1", tmp_path / "out")
    assert read_header(cache / "snapshots/1/model.safetensors").tensors
