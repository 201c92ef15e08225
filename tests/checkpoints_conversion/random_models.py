"""Small models of any family with random shapes and weights, written without transformers, for property tests."""

import json
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny_checkpoints import LLAMA3_ROPE

from checkpoints_conversion.directories import DIRECTORIES
from checkpoints_conversion.families import FAMILIES
from checkpoints_conversion.families.table import tensors
from checkpoints_conversion.spec import read_spec

SIZES = st.fixed_dictionaries(
    {
        "family": st.sampled_from(sorted(FAMILIES)),
        "directory": st.sampled_from(sorted(DIRECTORIES)),
        "groups": st.integers(1, 3),
        "queries": st.integers(1, 3),
        "head_dim": st.sampled_from([2, 4, 6]),
        "hidden": st.integers(1, 9),
        "ffn": st.integers(1, 9),
        "vocabulary": st.integers(1, 40),
        "layers": st.integers(1, 3),
        "experts": st.integers(2, 4),
        "norm_topk": st.booleans(),
        "tied": st.booleans(),
        "rope_factor": st.sampled_from([None, 8.0, 32.0]),
        "multiple": st.sampled_from([1, 7, 16]),
        "shard_bytes": st.sampled_from([300, 2000, 10**6]),
        "dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
        "seed": st.integers(0, 2**31),
    }
)
"""Shapes of a model and options of its conversion; `shard_bytes` holds for its files before and after."""


def write_random(directory: Path, sizes: dict[str, Any]) -> None:
    """Write a model: moderate numbers in float32, which a model can compute with, any bits in the other types."""
    directory.mkdir()
    heads, computes = sizes["groups"] * sizes["queries"], sizes["dtype"] == torch.float32
    config = {
        "model_type": sizes["family"],
        "architectures": [FAMILIES[sizes["family"]].architecture],
        "hidden_size": sizes["hidden"] * (heads if computes else 1),  # transformers wants a multiple of the heads
        "head_dim": sizes["head_dim"],
        "num_attention_heads": heads,
        "num_key_value_heads": sizes["groups"],
        "intermediate_size": sizes["ffn"],
        "moe_intermediate_size": sizes["ffn"],
        "num_experts": sizes["experts"],
        "num_experts_per_tok": 2,
        "norm_topk_prob": sizes["norm_topk"],
        "vocab_size": sizes["vocabulary"],
        "num_hidden_layers": sizes["layers"],
        "tie_word_embeddings": sizes["tied"],
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    }
    if sizes["rope_factor"] is not None and sizes["family"] == "llama":
        config["rope_scaling"] = LLAMA3_ROPE | {"rope_theta": 10000.0, "factor": sizes["rope_factor"]}
    (directory / "config.json").write_text(json.dumps(config))
    spec = read_spec(directory / "config.json")
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in tensors(FAMILIES[sizes["family"]], spec, 1):
        for piece in tensor.pieces:
            rows = shapes.get(piece.source, (0,))[0] + piece.rows
            shapes[piece.source] = (rows, *tensor.shape[1:])
    random = torch.Generator().manual_seed(sizes["seed"])
    _save({name: _values(shape, sizes["dtype"], random) for name, shape in shapes.items()}, directory, sizes)


def _values(shape: tuple[int, ...], dtype: torch.dtype, random: torch.Generator) -> torch.Tensor:
    if dtype == torch.float32:
        return torch.randn(shape, generator=random) / 4 + (1.0 if len(shape) == 1 else 0.0)
    bits = torch.randint(0, 256, (*shape, dtype.itemsize), generator=random, dtype=torch.uint8)
    return bits.view(dtype).squeeze(-1)


def _save(state: dict[str, torch.Tensor], directory: Path, sizes: dict[str, Any]) -> None:
    """Into as many files as `shard_bytes` asks for, with an index where there are several."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in state.items():
        if sum(item.nbytes for item in shards[-1].values()) > sizes["shard_bytes"]:
            shards.append({})
        shards[-1][name] = tensor
    if len(shards) == 1:
        save_file(state, directory / "model.safetensors", {"format": "pt"})
        return
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, directory / name, {"format": "pt"})
    places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in state.values())}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
