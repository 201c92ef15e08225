"""The shapes of released models, as their config.json has them, and directories of them for NeMo and Bridge, without
weights.
"""

import json
from pathlib import Path
from typing import Any

from checkpoints_conversion.directories.bridge import BRIDGE
from checkpoints_conversion.directories.directory import Imported
from checkpoints_conversion.directories.nemo import NEMO
from checkpoints_conversion.families import family_of
from checkpoints_conversion.huggingface import HuggingFace
from checkpoints_conversion.spec import read_spec

_LLAMA3 = {"high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192}


def _shape(
    family: str, layers: int, hidden: int, ffn: int, heads: int, groups: int, vocabulary: int, tied: bool, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": family,
        "architectures": [
            {"qwen2": "Qwen2", "qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe", "llama": "Llama"}[family] + "ForCausalLM"
        ],
        "hidden_act": "silu",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "torch_dtype": "bfloat16",
        **more,
    }


def _llama(layers: int, hidden: int, ffn: int, heads: int, tied: bool, factor: float) -> dict[str, Any]:
    scaling = {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    more = {"max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "rope_scaling": scaling}
    return _shape("llama", layers, hidden, ffn, heads, 8, 128_256, tied, **more)


QWEN3 = {"head_dim": 128, "max_position_embeddings": 40_960}

EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True}

SHAPES: dict[str, tuple[dict[str, Any], str | None]] = {
    "Qwen2.5-0.5B": (_shape("qwen2", 24, 896, 4864, 14, 2, 151_936, True), "qwen25_500m"),
    "Qwen2.5-1.5B": (_shape("qwen2", 28, 1536, 8960, 12, 2, 151_936, True), "qwen25_1p5b"),
    "Qwen2.5-3B": (_shape("qwen2", 36, 2048, 11_008, 16, 2, 151_936, True), None),
    "Qwen2.5-7B": (_shape("qwen2", 28, 3584, 18_944, 28, 4, 152_064, False), "qwen25_7b"),
    "Qwen2.5-Math-7B": (
        _shape("qwen2", 28, 3584, 18_944, 28, 4, 152_064, False, rope_theta=10_000.0, max_position_embeddings=4096),
        None,
    ),
    "Qwen2.5-14B": (_shape("qwen2", 48, 5120, 13_824, 40, 8, 152_064, False), "qwen25_14b"),
    "Qwen2.5-32B": (_shape("qwen2", 64, 5120, 27_648, 40, 8, 152_064, False), "qwen25_32b"),
    "Qwen3-0.6B": (_shape("qwen3", 28, 1024, 3072, 16, 8, 151_936, True, **QWEN3), "qwen3_600m"),
    "Qwen3-1.7B": (_shape("qwen3", 28, 2048, 6144, 16, 8, 151_936, True, **QWEN3), "qwen3_1p7b"),
    "Qwen3-4B": (_shape("qwen3", 36, 2560, 9728, 32, 8, 151_936, True, **QWEN3), "qwen3_4b"),
    "Qwen3-8B": (_shape("qwen3", 36, 4096, 12_288, 32, 8, 151_936, False, **QWEN3), "qwen3_8b"),
    "Qwen3-14B": (_shape("qwen3", 40, 5120, 17_408, 40, 8, 151_936, False, **QWEN3), "qwen3_14b"),
    "Qwen3-32B": (_shape("qwen3", 64, 5120, 25_600, 64, 8, 151_936, False, **QWEN3), "qwen3_32b"),
    "Qwen3-30B-A3B": (_shape("qwen3_moe", 48, 2048, 6144, 32, 4, 151_936, False, **QWEN3, **EXPERTS), "qwen3_30b_a3b"),
    "Llama-3-8B": (
        _shape("llama", 32, 4096, 14_336, 32, 8, 128_256, False, rope_theta=500_000.0, max_position_embeddings=8192),
        "llama3_8b",
    ),
    "Llama-3.1-8B": (_llama(32, 4096, 14_336, 32, False, 8.0), "llama31_8b"),
    "Llama-3.1-70B": (_llama(80, 8192, 28_672, 64, False, 8.0), "llama31_70b"),
    "Llama-3.2-1B": (_llama(16, 2048, 8192, 32, True, 32.0), "llama32_1b"),
    "Llama-3.2-3B": (_llama(28, 3072, 8192, 24, True, 32.0), "llama32_3b"),
    "a small Llama": (_shape("llama", 2, 64, 96, 4, 2, 384, False), None),
}
"""By name: config.json, and NeMo's own recipe for the shape; None where nemo_toolkit 2.7.3 has none."""


def write_config(name: str, directory: Path, **changes: Any) -> Path:
    """A directory with nothing but the config.json of a released model."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(SHAPES[name][0] | changes))
    return directory


def nemo_directory(name: str, root: Path, vocabulary_multiple: int = 128) -> Path:
    """What import_checkpoint writes for a model beside its weights, which are left out."""
    NEMO.write(root / name / "nemo", _imported(name, root / name / "hf", vocabulary_multiple))
    return root / name / "nemo"


def bridge_directory(name: str, root: Path, vocabulary_multiple: int = 1) -> Path:
    """The same for Megatron-Bridge."""
    (root / name / "bridge" / BRIDGE.weights).mkdir(parents=True)
    BRIDGE.write(root / name / "bridge", _imported(name, root / name / "hf", vocabulary_multiple))
    return root / name / "bridge"


def _imported(name: str, model: Path, vocabulary_multiple: int) -> Imported:
    write_config(name, model)
    spec = read_spec(model / "config.json")
    opened = HuggingFace(model, spec, family_of(spec, model / "config.json"), {}, ())
    return Imported(opened, "bfloat16", vocabulary_multiple, spec.padded_vocabulary(vocabulary_multiple))
