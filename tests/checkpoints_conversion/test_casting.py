"""`--dtype` rounds every weight as torch rounds it; a weight that has no place in the type is an error."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from large_model import ROOT
from safetensors.torch import save_file
from test_parallel_layouts import megatron_state
from tiny_checkpoints import assert_same_weights, counter, make_model, to_huggingface, to_megatron, weights

from checkpoints_conversion.cli import convert
from checkpoints_conversion.exporting import MAX_SHARD_BYTES, export_checkpoint
from checkpoints_conversion.floats import decode, encode
from checkpoints_conversion.publishing import Outcome
from checkpoints_conversion.verification import check
from reasonforge.errors import RequestError
from reasonforge.files import read_json

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def as_huggingface(source: Path, destination: Path, dtype: str | None) -> Outcome:
    return export_checkpoint(source, destination, None, MAX_SHARD_BYTES, 2, counter, dtype=dtype)


@pytest.mark.parametrize("family", ["qwen2", "qwen3_moe"])
@pytest.mark.parametrize("target", TYPES)
@pytest.mark.parametrize("source", TYPES)
def test_every_pair_of_types(source: str, target: str, family: str, tmp_path: Path) -> None:
    make_model(tmp_path / "hf", family, dtype=source)
    expected = {name: tensor.to(TYPES[target]) for name, tensor in weights(tmp_path / "hf").items()}
    to_megatron(tmp_path / "hf", tmp_path / "cast", dtype=target)
    to_huggingface(tmp_path / "cast", tmp_path / "by-import")
    to_megatron(tmp_path / "hf", tmp_path / "kept")
    as_huggingface(tmp_path / "kept", tmp_path / "by-export", target)
    for way in ("by-import", "by-export"):
        found = weights(tmp_path / way)
        assert found.keys() == expected.keys()
        assert all(
            torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)) for name, tensor in expected.items()
        )
        assert all(found[name].dtype == TYPES[target] for name in expected)
        assert read_json(tmp_path / way / "config.json")["dtype"] == target
    assert check(tmp_path / "cast", None, counter).good
    with torch.serialization.safe_globals([argparse.Namespace]):
        arguments = torch.load(tmp_path / "cast/iter_0000001/common.pt")["args"]
    assert (arguments.bf16, arguments.fp16) == (target == "bfloat16", target == "float16")
    state = megatron_state(tmp_path / "cast/iter_0000001")
    assert torch.equal(
        state["embedding.word_embeddings.weight"][:100].to(TYPES[target]), expected["model.embed_tokens.weight"]
    )


def hard_numbers(dtype: torch.dtype) -> torch.Tensor:
    """Every number of a 16-bit type; for float32 the neighbours of every 16-bit number and every tie, and many more."""
    if dtype != torch.float32:
        return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    upper = torch.arange(2**16, dtype=torch.int64) << 16
    low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    by_bfloat = (upper[:, None] | low).flatten()
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    by_half = halves.view(torch.int32).to(torch.int64)[:, None] + torch.tensor([-1, 0, 1, 0xFFF, 0x1000, 0x1001])
    random = torch.randint(0, 2**32, (200_000,), generator=torch.Generator().manual_seed(0))
    return torch.cat([by_bfloat, by_half.flatten() & 0xFFFFFFFF, random]).to(torch.int32).view(torch.float32)


@pytest.mark.parametrize("target", TYPES)
@pytest.mark.parametrize("source", TYPES)
def test_hard_numbers_are_rounded_as_torch_rounds_them(source: str, target: str) -> None:
    """Bit by bit, but for NaN: torch itself makes other ones in its vector code than one by one."""
    numbers = hard_numbers(TYPES[source])
    block = memoryview(numbers.view(torch.uint8).numpy().tobytes())
    found = torch.frombuffer(bytearray(encode(decode(block, NAMES[source]), NAMES[target])), dtype=TYPES[target])
    expected = numbers.to(TYPES[target])
    bits = torch.int32 if target == "float32" else torch.int16
    nan = expected.isnan()
    assert torch.equal(found.isnan(), nan)
    assert nan.any()
    assert torch.equal(found.view(bits)[~nan], expected.view(bits)[~nan])


@pytest.mark.parametrize(
    ("value", "source", "target", "told"),
    [
        (65519.0, "float32", "float16", None),
        (65520.0, "float32", "float16", "holds 65520, which float16 cannot hold"),
        (-1e30, "bfloat16", "float16", "holds -1.00026e+30, which float16 cannot hold"),
        (3.4e38, "float32", "bfloat16", "holds 3.4e+38, which bfloat16 cannot hold"),
        (float("inf"), "float32", "float16", None),
        (float("nan"), "float32", "float16", None),
        (1e-30, "float32", "float16", None),
    ],
)
def test_what_has_no_place_is_an_error(
    value: float, source: str, target: str, told: str | None, tmp_path: Path
) -> None:
    make_model(tmp_path / "hf", "qwen2", dtype=source)
    state = weights(tmp_path / "hf")
    state["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(state, tmp_path / "hf/model.safetensors")
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    if told is None:
        as_huggingface(tmp_path / "megatron", tmp_path / "out", target)
        made = weights(tmp_path / "out")["model.layers.1.mlp.up_proj.weight"][3, 4]
        assert torch.equal(made.nan_to_num(7.0), torch.tensor(value).to(TYPES[target]).nan_to_num(7.0))
        return
    with pytest.raises(RequestError, match=r"model\.layers\.1\.mlp\.up_proj\.weight") as error:
        as_huggingface(tmp_path / "megatron", tmp_path / "out", target)
    assert told in str(error.value)
    with pytest.raises(RequestError, match=r"decoder\.layers\.mlp\.linear_fc1\.weight\[1\]"):
        to_megatron(tmp_path / "hf", tmp_path / "cast", dtype=target)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cast").exists()


def test_the_type_it_has_already_is_a_copy(tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "qwen2", dtype="bfloat16")
    to_megatron(tmp_path / "hf", tmp_path / "kept")
    to_megatron(tmp_path / "hf", tmp_path / "same", dtype="bfloat16")
    for path in (tmp_path / "kept").rglob("*.distcp"):
        assert path.read_bytes() == (tmp_path / "same" / path.relative_to(tmp_path / "kept")).read_bytes()
    with pytest.raises(RequestError, match="--dtype: found 'float64'; float32, float16, bfloat16 are possible"):
        to_megatron(tmp_path / "hf", tmp_path / "out", dtype="float64")


def test_a_model_of_two_types(tmp_path: Path) -> None:
    """Norms in float32 beside bfloat16 matrices stay so, or all become what is asked for."""
    make_model(tmp_path / "hf", "qwen3", dtype="bfloat16")
    mixed = {name: tensor.float() if "norm" in name else tensor for name, tensor in weights(tmp_path / "hf").items()}
    save_file(mixed, tmp_path / "hf/model.safetensors")
    to_megatron(tmp_path / "hf", tmp_path / "kept")
    to_huggingface(tmp_path / "kept", tmp_path / "back")
    assert_same_weights(tmp_path / "hf", tmp_path / "back")
    to_megatron(tmp_path / "hf", tmp_path / "cast", dtype="float16")
    to_huggingface(tmp_path / "cast", tmp_path / "as-float16")
    found = weights(tmp_path / "as-float16")
    assert all(torch.equal(found[name], tensor.half()) for name, tensor in mixed.items())


def test_the_option(tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "qwen2")
    run = CliRunner().invoke
    for command in (
        ["import", "hf", "megatron", "--dtype", "bfloat16"],
        ["export", "megatron", "out", "--dtype", "float32"],
    ):
        verb, source, destination, *more = command
        assert run(convert, [verb, str(tmp_path / source), str(tmp_path / destination), *more]).exit_code == 0
    told = json.loads(run(convert, ["inspect", str(tmp_path / "out"), "--json"]).stdout)
    assert list(told["dtypes"]) == ["F32"]
    expected = {name: tensor.bfloat16().float() for name, tensor in weights(tmp_path / "hf").items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "out").items())


def test_numpy_is_loaded_only_to_cast(tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "qwen2")
    for number, (more, loaded) in enumerate((([], False), (["--dtype", "bfloat16"], True))):
        script = (
            "import sys; from checkpoints_conversion.cli import convert; "
            "convert(sys.argv[1:], standalone_mode=False); print('numpy' in sys.modules, 'torch' in sys.modules)"
        )
        command = [sys.executable, "-c", script, "import", tmp_path / "hf", tmp_path / f"out-{number}", *more]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == f"{loaded} False"
