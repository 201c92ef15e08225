"""Tiny random models of every family, made by transformers, and conversions of them, for the tests of this room."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from checkpoints_conversion.exporting import MAX_SHARD_BYTES, export_checkpoint
from checkpoints_conversion.importing import ImportOptions, import_checkpoint
from checkpoints_conversion.publishing import Outcome
from reasonforge.progress import Progress

SHAPE: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-rope-scaled": {"rope_parameters": LLAMA3_ROPE},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "norm_topk_prob": True,
    },
}


def make_model(directory: Path, family: str, *, dtype: str = "float32", shards: str = "1GB", **changes: Any) -> Any:
    """Save a random model; norms and biases are random too, so that a swap of any two tensors shows."""
    import transformers

    settings = SHAPE | {"rope_theta": 10000.0} | FAMILIES.get(family, {}) | changes
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe"}[family.partition("-")[0]]
    config = getattr(transformers, f"{name}Config")(**settings)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    with contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(directory, max_shard_size=shards)
    return model


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a Hugging Face directory, read by the safetensors library."""
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


def counter(total: int) -> Progress:
    return Progress("test", total, "bytes")


def to_megatron(source: Path, destination: Path, **options: Any) -> Outcome:
    return import_checkpoint(source, destination, ImportOptions(**options), 2, counter)


def to_huggingface(
    source: Path, destination: Path, reference: Path | None = None, max_shard_bytes: int = MAX_SHARD_BYTES
) -> Outcome:
    return export_checkpoint(source, destination, reference, max_shard_bytes, 2, counter)


def assert_same_weights(one: Path, other: Path) -> None:
    """Both directories hold the same tensors, bit by bit."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert tensor.shape == second[name].shape, name
        assert torch.equal(tensor.view(torch.uint8), second[name].view(torch.uint8)), name


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
