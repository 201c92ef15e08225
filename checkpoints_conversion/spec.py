"""What a model's config.json says of its shape, checked: the one thing that every family's map is drawn from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints_conversion.untrusted import read_json
from reasonforge.errors import RequestError

LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What megatron-core has fixed in its Llama 3 rope scaling (rotary_pos_embedding.py); only `factor` is free."""


@dataclass(frozen=True)
class ModelSpec:
    """The shape of a decoder. Sizes are numbers of elements; `experts` is 0 for a dense model."""

    model_type: str
    architecture: str
    layers: int
    hidden: int
    heads: int
    groups: int
    head_dim: int
    ffn: int
    vocabulary: int
    tied: bool
    positions: int
    norm_epsilon: float
    rope_theta: float
    rope_factor: float | None = None
    """The factor of Llama 3's rope scaling; None without scaling."""
    experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0
    norm_topk: bool = True
    """Whether the chosen experts' weights are scaled to add up to 1."""
    initializer_range: float = 0.02

    @property
    def query_rows(self) -> int:
        """Rows of the query projection."""
        return self.heads * self.head_dim

    @property
    def key_rows(self) -> int:
        """Rows of the key projection, and of the value projection."""
        return self.groups * self.head_dim

    def padded_vocabulary(self, multiple: int) -> int:
        """The vocabulary rounded up to a multiple, as Megatron pads it."""
        return math.ceil(self.vocabulary / multiple) * multiple


class ConfigReader:
    """Typed access to a config.json; RequestError names the file and the key."""

    def __init__(self, path: Path):
        found = read_json(path)
        if not isinstance(found, dict):
            raise RequestError(str(path), "not a JSON object, so no model's configuration")
        self.path, self.data = path, found

    def error(self, key: str, problem: str, remedy: str = "") -> RequestError:
        """An error about one key."""
        return RequestError(f"{self.path}: {key}", problem, remedy)

    def size(self, key: str, default: int | None = None, most: int = 2**31 - 1) -> int:
        """A positive number of elements, `most` at most."""
        found = self.data.get(key)
        found = default if found is None else found
        if type(found) is not int or not 0 < found <= most:
            raise self.error(key, f"found {str(found)[:40]}", "a positive whole number is needed")
        return found

    def number(self, key: str, default: float, data: Mapping[str, Any] | None = None) -> float:
        """A finite number."""
        found = (self.data if data is None else data).get(key)
        found = default if found is None else found
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            raise self.error(key, f"found {str(found)[:40]}", "a number is needed")
        return float(found)

    def flag(self, key: str, default: bool) -> bool:
        """A yes or no."""
        found = self.data.get(key, default)
        if not isinstance(found, bool):
            raise self.error(key, f"found {str(found)[:40]}", "true or false is needed")
        return found

    def refuse(self, key: str, allowed: tuple[Any, ...], why: str) -> None:
        """Raise unless the key is absent or one of the allowed values."""
        if key in self.data and self.data[key] not in allowed:
            raise self.error(key, f"found {str(self.data[key])[:40]}, and {why}")


def read_spec(path: Path) -> ModelSpec:
    """Read the shape from a config.json as transformers 4 and 5 write it.

    Raises RequestError on a missing or impossible size, and on what the maps do not cover.
    """
    config = ConfigReader(path)
    data = config.data
    model_type = data.get("model_type")
    if not isinstance(model_type, str):
        raise config.error("model_type", "missing", "every Hugging Face model has one")
    config.refuse("hidden_act", ("silu",), "only SwiGLU layers convert")
    config.refuse("quantization_config", (None,), "quantized weights do not convert; give the unquantized model")
    config.refuse("attention_bias", (False,), "no map has such biases")
    config.refuse("mlp_bias", (False,), "no map has such biases")
    config.refuse("use_sliding_window", (False,), "sliding windows are not converted")
    config.refuse("decoder_sparse_step", (1,), "only models whose every layer has experts convert")
    config.refuse("mlp_only_layers", ([], None), "only models whose every layer has experts convert")
    heads, hidden = config.size("num_attention_heads", most=2**16), config.size("hidden_size")
    groups = config.size("num_key_value_heads", heads)
    if heads % groups:
        raise config.error("num_key_value_heads", f"{groups} does not divide the {heads} attention heads")
    if data.get("head_dim") is None and hidden % heads:
        raise config.error("num_attention_heads", f"{heads} does not divide hidden_size {hidden}")
    architectures = data.get("architectures")
    theta, _, factor = _rope(config)
    experts = config.size("num_experts", config.size("num_local_experts", 128)) if model_type.endswith("_moe") else 0
    return ModelSpec(
        model_type=model_type,
        architecture=str(architectures[0]) if isinstance(architectures, list) and architectures else "",
        layers=config.size("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        groups=groups,
        head_dim=config.size("head_dim", max(hidden // heads, 1)),
        ffn=config.size("intermediate_size"),
        vocabulary=config.size("vocab_size"),
        tied=config.flag("tie_word_embeddings", False),
        positions=config.size("max_position_embeddings", 2048),
        norm_epsilon=config.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_factor=factor,
        experts=experts,
        experts_per_token=config.size("num_experts_per_tok", 8) if experts else 0,
        expert_ffn=config.size("moe_intermediate_size") if experts else 0,
        norm_topk=config.flag("norm_topk_prob", False) if experts else True,
        initializer_range=config.number("initializer_range", 0.02),
    )


def _rope(config: ConfigReader) -> tuple[float, str, float | None]:
    """Base, type and Llama 3 factor, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4)."""
    scaling = config.data.get("rope_parameters") or config.data.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise config.error("rope_scaling", f"found {str(scaling)[:40]}", "a mapping is needed")
    theta = config.number("rope_theta", config.number("rope_theta", 10000.0), scaling)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    return theta, str(kind), config.number("factor", 8.0, scaling) if kind == "llama3" else None


def check_rope(path: Path) -> None:
    """Raise RequestError where megatron-core cannot compute a model's rope, so that its logits would be others."""
    config = ConfigReader(path)
    _, kind, _ = _rope(config)
    if kind not in ("default", "llama3"):
        raise config.error("rope_scaling", f"found type {kind[:40]!r}", "Megatron has only llama3 scaling")
    scaling = config.data.get("rope_parameters") or config.data.get("rope_scaling") or {}
    for key, fixed in LLAMA3_ROPE.items():
        found = config.number(key, fixed, scaling)
        if kind == "llama3" and found != fixed:
            raise config.error(
                "rope_scaling", f"{key} is {found:g}, but Megatron's Llama 3 scaling has {fixed:g} built in"
            )
