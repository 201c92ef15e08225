"""Our imports have the keys, shapes, values and configuration that Megatron-Bridge's own have.

`bridge_keys.json` was made once from what `AutoBridge.import_ckpt` wrote for the models of `known_models`; it says with
which versions and layer specs.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from known_models import KNOWN, write_known
from tiny_checkpoints import assert_same_weights, to_huggingface, to_megatron

from checkpoints_conversion.inspection import inspect
from checkpoints_conversion.torch_dist import open_torch_dist

BRIDGE: dict[str, Any] = json.loads((Path(__file__).parent / "bridge_keys.json").read_text())["models"]

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def described(directory: Path) -> dict[str, list[Any]]:
    """Type, shape and checksum of every tensor, as torch's own reader finds them."""
    found = open_torch_dist(directory).metadata.tensors
    state = {key: torch.empty(tensor.shape, dtype=DTYPES[tensor.dtype]) for key, tensor in found.items()}
    dcp.load(state, checkpoint_id=str(directory), no_dist=True)
    return {
        key: [
            str(value.dtype).removeprefix("torch."),
            list(value.shape),
            hashlib.sha256(value.view(torch.uint8).numpy().tobytes()).hexdigest(),
        ]
        for key, value in state.items()
    }


@pytest.mark.parametrize("directory", ["bridge", "megatron"])
@pytest.mark.parametrize("layer_spec", ["te", "local"])
@pytest.mark.parametrize("name", KNOWN)
def test_keys_shapes_and_values_are_bridges(name: str, layer_spec: str, directory: str, tmp_path: Path) -> None:
    write_known(tmp_path / "hf", name)
    to_megatron(
        tmp_path / "hf", tmp_path / "ours", directory=directory, layer_spec=layer_spec, vocabulary_multiple=1
    )  # Bridge pads no vocabulary
    [weights] = (tmp_path / "ours").glob("iter_*")
    bridge = BRIDGE[name]
    spelling = bridge["local_spelling"] if layer_spec == "local" else {}
    assert described(weights) == {spelling.get(key, key): value for key, value in bridge["tensors"].items()}
    objects = set(open_torch_dist(weights).metadata.objects)
    assert objects >= set(bridge["objects"][layer_spec])


@pytest.mark.parametrize("name", KNOWN)
def test_the_directory_is_bridges(name: str, tmp_path: Path) -> None:
    write_known(tmp_path / "hf", name)
    to_megatron(tmp_path / "hf", tmp_path / "ours", directory="bridge", vocabulary_multiple=1)
    ours, bridge = tmp_path / "ours", BRIDGE[name]
    files = {path.relative_to(ours).as_posix() for path in ours.rglob("*") if path.is_file()}
    written_by_transformers = {"special_tokens_map.json", "chat_template.jinja"}  # here inside tokenizer_config.json
    assert files >= {file for file in bridge["files"] if Path(file).name not in written_by_transformers}
    assert torch.load(ours / "iter_0000000/common.pt") == bridge["common"]
    config = yaml.safe_load((ours / "iter_0000000/run_config.yaml").read_text())
    assert config["model"].pop("hf_model_id") == str(tmp_path / "hf")
    assert config["model"].pop("make_vocab_size_divisible_by") == 1  # it has no effect without should_pad_vocab
    assert config["model"] == bridge["run_config"]["model"]
    assert config["checkpoint"] == bridge["run_config"]["checkpoint"]
    assert config["tokenizer"]["tokenizer_type"] == bridge["run_config"]["tokenizer"]["tokenizer_type"]


def test_the_train_state_is_bridges(tmp_path: Path) -> None:
    """torch loads it without running code; the types are those of Bridge's TrainState.state_dict as it saves it."""
    write_known(tmp_path / "hf", "qwen2")
    to_megatron(tmp_path / "hf", tmp_path / "ours", directory="bridge")
    integers = ("step", "consumed_train_samples", "skipped_train_samples", "consumed_valid_samples")
    expected = {
        **dict.fromkeys(integers, torch.tensor(0, dtype=torch.int32)),
        "floating_point_operations_so_far": torch.tensor(0.0),
        **dict.fromkeys(("do_train", "do_valid", "do_test"), torch.tensor(False)),
    }
    for name in ("latest_train_state.pt", "iter_0000000/train_state.pt"):
        found = torch.load(tmp_path / "ours" / name, weights_only=True)
        assert found == expected
        assert {key: value.dtype for key, value in found.items()} == {
            key: value.dtype for key, value in expected.items()
        }


def test_padding_is_told_and_goes_away(tmp_path: Path) -> None:
    write_known(tmp_path / "hf", "qwen3")
    to_megatron(tmp_path / "hf", tmp_path / "ours", directory="bridge", vocabulary_multiple=64)
    model = yaml.safe_load((tmp_path / "ours/iter_0000000/run_config.yaml").read_text())["model"]
    assert (model["vocab_size"], model["make_vocab_size_divisible_by"], model["should_pad_vocab"]) == (100, 64, True)
    to_huggingface(tmp_path / "ours", tmp_path / "back")
    assert_same_weights(tmp_path / "hf", tmp_path / "back")
    assert inspect(tmp_path / "ours", None)["format"] == "bridge"


def test_the_tokenizer_loads_from_its_directory(tmp_path: Path) -> None:
    """Bridge opens `tokenizer` beside run_config.yaml with transformers."""
    from transformers import AutoTokenizer

    write_known(tmp_path / "hf", "qwen2")
    to_megatron(tmp_path / "hf", tmp_path / "ours", directory="bridge")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours/iter_0000000/tokenizer")
    assert tokenizer("w5 w99")["input_ids"] == [5, 99]
    assert tokenizer.chat_template == "{{ messages }}"
