"""`verify` of one checkpoint finds a flipped bit anywhere in it, unless no reader goes by that bit."""

import io
import os
import random
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from test_parallel_layouts import megatron_state, save
from tiny_checkpoints import counter, edit_json, make_model, to_huggingface, to_megatron

from checkpoints_conversion.verification import Verdict, check
from checkpoints_conversion.zip_check import DamageError, check_archive
from reasonforge.errors import RequestError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as an import made it, and as torch itself saves it, cut in two."""
    place = tmp_path_factory.mktemp("made")
    make_model(place / "hf", "qwen2", num_hidden_layers=1, vocab_size=40)
    to_megatron(place / "hf", place / "imported")
    save(place / "trained", megatron_state(place / "imported/iter_0000001"), 2)
    shutil.copytree(place / "hf", place / "trained/huggingface")
    return place


def flipped(path: Path, bit: int) -> Iterator[None]:
    """The file with one bit the other way, then as it was."""
    with open(path, "r+b") as handle:
        handle.seek(bit // 8)
        byte = handle.read(1)[0]
        for value in (byte ^ (1 << bit % 8), byte):
            handle.seek(bit // 8)
            handle.write(bytes([value]))
            handle.flush()
            yield


def is_found(directory: Path) -> bool:
    try:
        return not check(directory, None, counter).good
    except RequestError:
        return True


def same_to_torch(weights: Path, expected: dict[str, torch.Tensor]) -> bool:
    """Whether torch itself reads every tensor as it was, and the common state."""
    torch.load(weights / "common.pt", weights_only=False)
    found = megatron_state(weights)
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def places(path: Path, count: int, seed: str) -> list[int]:
    """Bits all over a file, more of them in its first and last bytes, where headers are."""
    draw, size = random.Random(seed), path.stat().st_size
    edges = [draw.randrange(min(600, size)) for _ in range(count)]
    edges += [size - 1 - draw.randrange(min(600, size)) for _ in range(count)]
    return [8 * byte + draw.randrange(8) for byte in edges + [draw.randrange(size) for _ in range(count)]]


PADDING = ord("Z")
"""torch fills the room in front of a member with it, and so do we."""


def test_a_flipped_bit_of_an_import_is_found(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "imported", tmp_path / "copy")
    weights = tmp_path / "copy/iter_0000001"
    expected = megatron_state(weights)
    assert not is_found(tmp_path / "copy")
    found = harmless = 0
    for path in sorted((tmp_path / "copy").rglob("*")):
        for bit in places(path, 12, path.name) if path.is_file() and path.stat().st_size else ():
            flip = flipped(path, bit)
            next(flip)
            if is_found(tmp_path / "copy"):
                found += 1
            else:
                harmless += 1
                assert path.name == "conversion.json" or path.suffix == ".distcp", path.name
                assert same_to_torch(weights, expected), f"{path.name}, byte {bit // 8}"
            next(flip)
    assert found > 200
    assert found > 3 * harmless


def test_a_flipped_bit_of_what_torch_saved_is_found(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "trained", tmp_path / "copy")
    expected = megatron_state(tmp_path / "copy")
    assert not is_found(tmp_path / "copy")
    found = harmless = 0
    for path in (tmp_path / "copy/__0_0.distcp", tmp_path / "copy/common.pt"):
        for bit in places(path, 60, path.name):
            flip = flipped(path, bit)
            next(flip)
            if is_found(tmp_path / "copy"):
                found += 1
            else:
                harmless += 1
                assert same_to_torch(tmp_path / "copy", expected), f"{path.name}, byte {bit // 8}"
            next(flip)
    assert found > harmless


def test_every_bit_of_a_small_archive(tmp_path: Path) -> None:
    """What the check does not find, torch reads as if nothing were flipped; only padding and times are so."""
    from checkpoints_conversion.torch_format import tensor_archive

    tensor = torch.arange(6.0)
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    archive, payload = tensor_archive("F32", (6,)), tensor.numpy().tobytes()
    ours = archive.head(zlib.crc32(payload)) + payload + archive.tail(zlib.crc32(payload))
    for data in (buffer.getvalue(), ours):
        path = tmp_path / "archive"
        unseen = 0
        for bit in range(len(data) * 8):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            descriptor = os.open(path, os.O_RDONLY)
            try:
                assert check_archive(descriptor, 0, len(changed))
                unseen += 1
                if data[bit // 8] != PADDING:
                    loaded = torch.load(io.BytesIO(changed), weights_only=True)
                    assert torch.equal(loaded, tensor), f"byte {bit // 8}"
            except DamageError:
                pass
            finally:
                os.close(descriptor)
        assert unseen < len(data) * 8 * 0.6, "padding makes up about half of so small an archive"


def test_archives_without_checksums_are_counted(made: Path, tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        save(tmp_path / "trained", megatron_state(made / "imported/iter_0000001"), 1)
    finally:
        torch.serialization.set_crc32_options(True)
    verdict = check(tmp_path / "trained", made / "hf", counter)
    assert verdict.good
    assert verdict.without_checksums > 10
    assert check(made / "trained", None, counter).without_checksums == 0


def changed(change: Callable[[Path], object], directory: Path, tmp_path: Path) -> Verdict:
    shutil.copytree(directory, tmp_path / "changed")
    change(tmp_path / "changed")
    return check(tmp_path / "changed", None, counter)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda root: (root / "generation_config.json").unlink(), ["generation_config.json: missing"]),
        (lambda root: edit_json(root / "generation_config.json", top_k=1), ["generation_config.json: "]),
        (lambda root: (root / "README.md").write_text("our own card"), []),
        (lambda root: (root / "more.txt").write_text("more"), []),
    ],
)
def test_a_changed_export_is_told(
    change: Callable[[Path], object], told: list[str], made: Path, tmp_path: Path
) -> None:
    to_huggingface(made / "imported", tmp_path / "hf")
    verdict = changed(change, tmp_path / "hf", tmp_path)
    assert len(verdict.problems) == len(told)
    assert all(problem.startswith(start) for problem, start in zip(verdict.problems, told, strict=True))


def test_training_that_goes_on_is_not_blamed(made: Path, tmp_path: Path) -> None:
    def train(root: Path) -> None:
        (root / "iter_0000001").rename(root / "iter_0000050")
        (root / "latest_checkpointed_iteration.txt").write_text("50")

    assert changed(train, made / "imported", tmp_path).good


def test_a_damaged_receipt_is_told(made: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="damaged, or not a conversion's receipt"):
        changed(lambda root: edit_json(root / "conversion.json", conversion="export"), made / "imported", tmp_path)
