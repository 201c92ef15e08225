"""Tiny models whose every weight follows from its name, so that they are the same on any machine, torch and Python.

`bridge_keys.json` holds what Megatron-Bridge made of them; `test_bridge.py` makes them anew and compares.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from checkpoints_conversion.families import family_of
from checkpoints_conversion.families.table import tensors
from checkpoints_conversion.spec import read_spec

COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 100,
}

KNOWN: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
    "qwen2": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "torch_dtype": "float32",
    },
    "qwen3": {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 16,
        "torch_dtype": "float16",
        "use_sliding_window": False,
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "head_dim": 16,
        "mlp_only_layers": [],
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.001,
        "use_sliding_window": False,
    },
}
"""Configurations as transformers 4 writes them, the version that Megatron-Bridge reads with."""


def write_known(directory: Path, name: str) -> None:
    """Write the model `name` of `KNOWN`, with a tokenizer of its 100 words."""
    directory.mkdir(parents=True)
    config = COMMON | KNOWN[name]
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    spec = read_spec(directory / "config.json")
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in tensors(family_of(spec, directory / "config.json"), spec, 1):
        for piece in tensor.pieces:
            rows = shapes.get(piece.source, (0,))[0] + piece.rows
            shapes[piece.source] = (rows, *tensor.shape[1:])
    dtype = getattr(torch, config["torch_dtype"])
    save_file(
        {name: known_values(name, shape).to(dtype) for name, shape in shapes.items()},
        directory / "model.safetensors",
        {"format": "pt"},
    )
    _write_tokenizer(directory, config["vocab_size"])


def known_values(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """float32 values in [-1/8, 1/8): a linear congruence of the element's number and the checksum of the name."""
    numbers = torch.arange(torch.Size(shape).numel(), dtype=torch.int64) + zlib.crc32(name.encode())
    scattered = (numbers * 2654435761 % 2**32) >> 16
    return ((scattered - 2**15).to(torch.float32) / 2**18).reshape(shape)


def _write_tokenizer(directory: Path, words: int) -> None:
    vocabulary = {"<unk>": 0, "<eos>": 1} | {f"w{number}": number for number in range(2, words)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "<eos>"}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "{{ messages }}"}))
