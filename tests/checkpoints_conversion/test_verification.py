"""`verify` names what differs, `merge` averages exactly, `inspect` describes, and the commands say it to machines."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from tiny_checkpoints import counter, make_model, to_megatron, weights

from checkpoints_conversion.cli import convert
from checkpoints_conversion.floats import averaging, decode, encode
from checkpoints_conversion.merging import merge
from checkpoints_conversion.verification import compare
from reasonforge.errors import RequestError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made")
    make_model(place / "hf", "qwen3", dtype="bfloat16")
    to_megatron(place / "hf", place / "megatron")
    return place


def changed(made: Path, directory: Path, name: str, change: float) -> Path:
    """A copy of the model in which one number of a tensor is another."""
    directory.mkdir()
    for path in (made / "hf").glob("*.json"):
        (directory / path.name).write_bytes(path.read_bytes())
    state = load_file(made / "hf/model.safetensors")
    state[name].view(-1)[5] += change
    save_file(state, directory / "model.safetensors")
    return directory


def run(*arguments: object) -> Result:
    return CliRunner().invoke(convert, [str(argument) for argument in arguments])


@pytest.mark.parametrize("sides", [("hf", "megatron"), ("megatron", "hf"), ("megatron", "megatron"), ("hf", "hf")])
def test_equal_across_formats(sides: Sequence[str], made: Path) -> None:
    verdict = compare(made / sides[0], made / sides[1], None, None, counter)
    assert verdict.good
    assert verdict.tensors == len(weights(made / "hf"))


def test_what_differs_is_named(made: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.v_proj.weight"
    other = changed(made, tmp_path / "other", name, 0.5)
    verdict = compare(made / "megatron", other, None, None, counter)
    assert not verdict.good
    assert verdict.problems == [f"{name}: the bits differ from byte 10 on"]
    near = compare(made / "megatron", other, 0.6, None, counter)
    assert near.good
    assert near.largest == pytest.approx(0.5, abs=0.01)
    far = compare(other, made / "megatron", 0.4, None, counter)
    assert far.problems[0].startswith(f"{name}: 1 numbers differ by more than 0.4, the most by 0.5")


def test_commands(made: Path, tmp_path: Path) -> None:
    other = changed(made, tmp_path / "other", "model.norm.weight", 1.0)
    assert run("verify", made / "hf", made / "megatron").exit_code == 0
    differing = run("verify", made / "megatron", other, "--json")
    assert differing.exit_code == 3
    assert json.loads(differing.stdout)["problems"] == ["model.norm.weight: the bits differ from byte 10 on"]
    assert run("verify", made / "megatron").exit_code == 0
    bad = changed(made, tmp_path / "bad", "model.norm.weight", float("nan"))
    assert run("verify", bad).exit_code == 3
    told: dict[str, Any] = json.loads(run("inspect", made / "megatron", "--json").stdout)
    assert (told["format"], told["family"], told["iteration"]) == ("megatron", "qwen3", 1)
    assert told["parameters"] == sum(tensor.numel() for tensor in weights(made / "hf").values())
    assert told["dtypes"] == {"BF16": told["tensors"]}
    assert told["missing"] == ["tokenizer", "tokenizer_config.json"]
    assert json.loads(run("inspect", made / "hf", "--json").stdout)["parameters"] == told["parameters"]
    assert "qwen3" in run("inspect", made / "hf").stdout
    done = run("import", made / "hf", tmp_path / "megatron", "--json")
    assert json.loads(done.stdout)["already_done"] is False
    assert run("export", tmp_path / "megatron", tmp_path / "back").exit_code == 0
    assert run("verify", tmp_path / "back", made / "hf").exit_code == 0


def test_merge_is_the_average_rounded_once(made: Path, tmp_path: Path) -> None:
    make_model(tmp_path / "b", "qwen3", dtype="bfloat16", initializer_range=0.5)
    merge([(made / "hf", 0.3), (tmp_path / "b", 0.7)], tmp_path / "merged", 2, counter)
    first, second, merged = weights(made / "hf"), weights(tmp_path / "b"), weights(tmp_path / "merged")
    assert merged.keys() == first.keys()
    for name, tensor in merged.items():
        expected = 0.3 * first[name].double() + 0.7 * second[name].double()
        assert torch.equal(tensor, expected.float().bfloat16()), name
    merge([(made / "hf", 0.5), (made / "hf", 0.5)], tmp_path / "same", 2, counter)
    assert compare(tmp_path / "same", made / "megatron", None, None, counter).good


def test_what_cannot_be_merged(made: Path, tmp_path: Path) -> None:
    make_model(tmp_path / "b", "qwen3", dtype="bfloat16", intermediate_size=40)
    with pytest.raises(RequestError, match="merge models of one shape and type"):
        merge([(made / "hf", 0.5), (tmp_path / "b", 0.5)], tmp_path / "out", 1, counter)
    with pytest.raises(RequestError, match=r"the 2 weights add up to 1\.5"):
        merge([(made / "hf", 0.5), (made / "hf", 1.0)], tmp_path / "out", 1, counter)
    assert isinstance(run("merge", made / "hf", "--into", tmp_path / "out").exception, RequestError)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_numbers_round_as_torch_rounds(dtype: str) -> None:
    torch_dtype = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[dtype]
    special = torch.tensor(
        [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e38, 3.4e38, 1e-45, 65519.9, 65520.0]
    )
    numbers = torch.cat([special, torch.randn(100_000) * 100, 1 + torch.arange(300) / 512])
    encoded = encode(numbers.numpy(), dtype)
    expected = numbers.to(torch_dtype)
    found = torch.frombuffer(bytearray(encoded), dtype=torch_dtype)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(
        torch.from_numpy(decode(memoryview(encoded), dtype)).nan_to_num(7.0), expected.float().nan_to_num(7.0)
    )
    half = averaging(dtype, (0.5, 0.5))([memoryview(encoded), memoryview(encoded)])
    assert torch.equal(torch.frombuffer(bytearray(half), dtype=torch_dtype).nan_to_num(7.0), expected.nan_to_num(7.0))
