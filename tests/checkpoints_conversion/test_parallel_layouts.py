"""What training leaves at any parallelism exports: shards of rows and columns, one key a layer, NeMo's prefix."""

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import assert_same_weights, make_model, to_huggingface, to_megatron
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from reasonforge.errors import RequestError

COLUMNS_SPLIT = ("linear_proj.weight", "linear_fc2.weight")


def megatron_state(directory: Path) -> dict[str, torch.Tensor]:
    """Every stacked tensor of an imported checkpoint, read by torch."""
    import torch.distributed.checkpoint as dcp

    found = pickle.loads((directory / ".metadata").read_bytes()).state_dict_metadata  # noqa: S301
    state = {key: torch.empty(entry.size) for key, entry in found.items() if isinstance(entry, TensorStorageMetadata)}
    dcp.load(state, checkpoint_id=str(directory), no_dist=True)
    return state


def save(directory: Path, state: dict[str, torch.Tensor], parts: int, layers_a_chunk: int = 1) -> None:
    """Save with torch's own classes and torch.save, cut into `parts` of rows or columns as tensor parallelism cuts."""
    directory.mkdir(parents=True)
    described: dict[str, Any] = {}
    stored: dict[Any, Any] = {}
    with open(directory / "__0_0.distcp", "wb") as handle:

        def put(index: MetadataIndex, value: Any) -> None:
            buffer = io.BytesIO()
            torch.save(value, buffer)
            stored[index] = _StorageInfo("__0_0.distcp", handle.tell(), len(buffer.getvalue()))
            handle.write(buffer.getvalue())

        for key, tensor in state.items():
            stacked = "decoder.layers." in key and not key.split("decoder.layers.")[1][0].isdigit()
            axis = tensor.ndim - 1 if key.endswith(COLUMNS_SPLIT) else int(stacked)
            cuts = parts if tensor.shape[axis] % parts == 0 else 1
            chunks = []
            for group in tensor.split(layers_a_chunk) if stacked else [tensor]:
                first = 0 if not stacked else sum(chunk.sizes[0] for chunk in chunks) // cuts
                for number, piece in enumerate(group.chunk(cuts, axis)):
                    offsets = [0] * tensor.ndim
                    offsets[axis] = number * piece.shape[axis]
                    offsets[0] += first
                    chunks.append(ChunkStorageMetadata(torch.Size(offsets), piece.shape))
                    put(MetadataIndex(key, offsets), piece.clone())
            described[key] = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), tensor.shape, chunks)
        described["rng_state/shard_0_1"] = BytesStorageMetadata()
        put(MetadataIndex("rng_state/shard_0_1"), [b"random"])
    (directory / ".metadata").write_bytes(pickle.dumps(Metadata(described, None, stored)))
    (directory / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
    torch.save({"iteration": 7, "args": __import__("argparse").Namespace(num_layers=2)}, directory / "common.pt")


def by_layer(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One key for each layer, as megatron-core saves layers that are not alike."""
    found = {}
    for key, tensor in state.items():
        head, stacked, rest = key.partition("decoder.layers.")
        if stacked:
            found |= {f"{head}decoder.layers.{layer}.{rest}": part for layer, part in enumerate(tensor)}
        else:
            found[key] = tensor
    return found


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("family", ["qwen2", "qwen3_moe"])
def test_any_tensor_parallelism(family: str, parts: int, tmp_path: Path) -> None:
    make_model(tmp_path / "hf", family)
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    state = megatron_state(tmp_path / "megatron/iter_0000001")
    state |= {f"optimizer.state.exp_avg.{key}": torch.randn_like(tensor) for key, tensor in state.items()}
    save(tmp_path / "trained", state, parts)
    to_huggingface(tmp_path / "trained", tmp_path / "back", tmp_path / "hf")
    assert_same_weights(tmp_path / "hf", tmp_path / "back")


@pytest.mark.parametrize("parts", [1, 2])
def test_one_key_a_layer_and_two_layers_a_chunk(parts: int, tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "qwen2", num_hidden_layers=4)
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    state = megatron_state(tmp_path / "megatron/iter_0000001")
    save(tmp_path / "by-layer", by_layer(state), parts)
    save(tmp_path / "by-two", state, parts, layers_a_chunk=2)
    for name in ("by-layer", "by-two"):
        to_huggingface(tmp_path / name, tmp_path / f"back-{name}", tmp_path / "hf")
        assert_same_weights(tmp_path / "hf", tmp_path / f"back-{name}")


def test_nemo_weights_below_a_prefix(tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "llama")
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    state = megatron_state(tmp_path / "megatron/iter_0000001")
    save(tmp_path / "nemo/weights", {f"module.{key}": tensor for key, tensor in state.items()}, 2)
    to_huggingface(tmp_path / "nemo", tmp_path / "back", tmp_path / "hf")
    assert_same_weights(tmp_path / "hf", tmp_path / "back")


def test_without_the_models_configuration_it_says_what_to_give(tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "llama")
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    save(tmp_path / "trained", megatron_state(tmp_path / "megatron/iter_0000001"), 1)
    with pytest.raises(RequestError, match="give the model it was trained from with --reference DIR"):
        to_huggingface(tmp_path / "trained", tmp_path / "back")


def test_a_checkpoint_of_another_model_is_told(tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "llama")
    make_model(tmp_path / "other", "llama", intermediate_size=32)
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    with pytest.raises(RequestError, match=r"linear_fc1.weight has shape \[2, 96, 32\], but the model's is"):
        to_huggingface(tmp_path / "megatron", tmp_path / "back", tmp_path / "other")
