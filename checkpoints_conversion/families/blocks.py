"""Lines that several families share."""

from checkpoints_conversion.families.table import Line, interleaved_qkv, stacked, whole
from checkpoints_conversion.spec import ModelSpec


def _hidden(spec: ModelSpec) -> int:
    return spec.hidden


def _vocabulary(spec: ModelSpec) -> int:
    return spec.vocabulary


def _ffn(spec: ModelSpec) -> int:
    return spec.ffn


def _expert_ffn(spec: ModelSpec) -> int:
    return spec.expert_ffn


def _head_dim(spec: ModelSpec) -> int:
    return spec.head_dim


def _query_rows(spec: ModelSpec) -> int:
    return spec.query_rows


def _experts(spec: ModelSpec) -> int:
    return spec.experts


_ATTENTION = "decoder.layers.self_attention."
_HF = "model.layers.{layer}."
_QKV = tuple(f"{_HF}self_attn.{name}_proj." for name in "qkv")

OUTSIDE = (
    Line("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), whole(_vocabulary), _hidden, padded=True),
    Line("decoder.final_layernorm.weight", ("model.norm.weight",), whole(_hidden), None),
    Line(
        "output_layer.weight",
        ("lm_head.weight",),
        whole(_vocabulary),
        _hidden,
        only=lambda spec: not spec.tied,
        padded=True,
    ),
)

ATTENTION = (
    Line(f"{_ATTENTION}linear_qkv.layer_norm_weight", (f"{_HF}input_layernorm.weight",), whole(_hidden), None),
    Line(f"{_ATTENTION}linear_qkv.weight", tuple(f"{name}weight" for name in _QKV), interleaved_qkv, _hidden),
    Line(f"{_ATTENTION}linear_proj.weight", (f"{_HF}self_attn.o_proj.weight",), whole(_hidden), _query_rows),
)

QKV_BIAS = (Line(f"{_ATTENTION}linear_qkv.bias", tuple(f"{name}bias" for name in _QKV), interleaved_qkv, None),)

QK_NORM = (
    Line(f"{_ATTENTION}q_layernorm.weight", (f"{_HF}self_attn.q_norm.weight",), whole(_head_dim), None),
    Line(f"{_ATTENTION}k_layernorm.weight", (f"{_HF}self_attn.k_norm.weight",), whole(_head_dim), None),
)

DENSE_MLP = (
    Line(
        "decoder.layers.mlp.linear_fc1.layer_norm_weight",
        (f"{_HF}post_attention_layernorm.weight",),
        whole(_hidden),
        None,
    ),
    Line(
        "decoder.layers.mlp.linear_fc1.weight",
        (f"{_HF}mlp.gate_proj.weight", f"{_HF}mlp.up_proj.weight"),
        stacked(_ffn),
        _hidden,
        chunks=2,
    ),
    Line("decoder.layers.mlp.linear_fc2.weight", (f"{_HF}mlp.down_proj.weight",), whole(_hidden), _ffn),
)

MOE_NORM_KEY = "decoder.layers.pre_mlp_layernorm.weight"
LOCAL_MOE_NORM_KEY = "decoder.layers.mlp.linear_fc1.layer_norm_weight"
"""megatron-core's local layer spec renames the norm as if a dense layer followed (gpt_layer_specs.py)."""

MOE = (
    Line(MOE_NORM_KEY, (f"{_HF}post_attention_layernorm.weight",), whole(_hidden), None),
    Line("decoder.layers.mlp.router.weight", (f"{_HF}mlp.gate.weight",), whole(_experts), _hidden),
)

_EXPERT = f"{_HF}mlp.experts.{{expert}}."

EXPERT = (
    Line(
        "decoder.layers.mlp.experts.experts.linear_fc1.weight",
        (f"{_EXPERT}gate_proj.weight", f"{_EXPERT}up_proj.weight"),
        stacked(_expert_ffn),
        _hidden,
        chunks=2,
    ),
    Line(
        "decoder.layers.mlp.experts.experts.linear_fc2.weight",
        (f"{_EXPERT}down_proj.weight",),
        whole(_hidden),
        _expert_ffn,
    ),
)

ATTENTION_STATES = ("self_attention.core_attention", "self_attention.linear_qkv", "self_attention.linear_proj")
QK_NORM_STATES = ("self_attention.q_layernorm", "self_attention.k_layernorm")
DENSE_STATES = ("mlp.linear_fc1", "mlp.linear_fc2")
EXPERT_STATES = ("mlp.experts.experts.linear_fc1", "mlp.experts.experts.linear_fc2")
