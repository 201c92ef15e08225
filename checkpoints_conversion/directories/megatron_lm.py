"""Megatron-LM's directory: `iter_*` and the tracker that names the last one."""

from pathlib import Path
from typing import Any

from checkpoints_conversion.directories.directory import Directory, Imported, carry
from checkpoints_conversion.megatron import CARRIED, TRACKER
from checkpoints_conversion.spec import ModelSpec
from checkpoints_conversion.torch_format import namespace
from reasonforge.files import write_atomic

ITERATION = 1
"""The iteration of an imported checkpoint: Megatron-LM before 2026 refuses a tracker that says 0."""


def _write(tree: Path, imported: Imported) -> None:
    carry(imported.model, tree / CARRIED)
    write_atomic(tree / TRACKER, f"{ITERATION}\n")


def _common(imported: Imported) -> dict[str, Any]:
    """The iteration, and the arguments that Megatron-LM builds a model from (--use-checkpoint-args)."""
    family = imported.model.family
    arguments = _arguments(imported.model.spec) | {
        "add_qkv_bias": family.qkv_bias,
        "qk_layernorm": family.qk_norm,
        "make_vocab_size_divisible_by": imported.vocabulary_multiple,
        "padded_vocab_size": imported.padded_vocabulary,
        "bf16": imported.dtype == "bfloat16",
        "fp16": imported.dtype == "float16",
        "tokenizer_type": "HuggingFaceTokenizer",
    }
    return {
        "args": namespace(arguments),
        "checkpoint_version": 3.0,
        "iteration": ITERATION,
        "num_floating_point_operations_so_far": 0,
    }


def _arguments(spec: ModelSpec) -> dict[str, Any]:
    """A model's shape under the names of Megatron-LM's arguments (megatron/training/arguments.py)."""
    found: dict[str, Any] = {
        "num_layers": spec.layers,
        "hidden_size": spec.hidden,
        "ffn_hidden_size": spec.ffn,
        "num_attention_heads": spec.heads,
        "group_query_attention": spec.groups != spec.heads,
        "num_query_groups": spec.groups,
        "kv_channels": spec.head_dim,
        "seq_length": spec.positions,
        "max_position_embeddings": spec.positions,
        "position_embedding_type": "rope",
        "add_position_embedding": True,
        "use_rotary_position_embeddings": True,
        "rotary_base": int(spec.rope_theta) if spec.rope_theta.is_integer() else spec.rope_theta,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "use_rope_scaling": spec.rope_factor is not None,
        "rope_scaling_factor": 8.0 if spec.rope_factor is None else spec.rope_factor,
        "normalization": "RMSNorm",
        "norm_epsilon": spec.norm_epsilon,
        "apply_layernorm_1p": False,
        "add_bias_linear": False,
        "swiglu": True,
        "squared_relu": False,
        "untie_embeddings_and_output_weights": not spec.tied,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "init_method_std": spec.initializer_range,
        "apply_query_key_layer_scaling": False,
        "vocab_size": spec.vocabulary,
        "num_experts": spec.experts or None,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "world_size": 1,
        "data_parallel_size": 1,
        "no_save_optim": True,
        "no_save_rng": True,
        "ckpt_format": "torch_dist",
    }
    if spec.experts:
        found |= {
            "moe_ffn_hidden_size": spec.expert_ffn,
            "moe_router_topk": spec.experts_per_token,
            "moe_router_pre_softmax": not spec.norm_topk,
            "moe_layer_freq": 1,
            "moe_grouped_gemm": True,
        }
    return found


MEGATRON_LM = Directory(
    weights=f"iter_{ITERATION:07d}", prefix="", vocabulary_multiple=128, common=_common, write=_write
)
