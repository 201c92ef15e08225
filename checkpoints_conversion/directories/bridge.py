"""Megatron-Bridge's directory, as `AutoBridge.import_ckpt` of 0.3.1 writes it; `importing` makes it on request.

`run_config.yaml` holds what decides over a model's shape and numbers, and how its weights were saved. Every other field
has the default of the Bridge that reads it, so that the directory fits the versions before and after too. Bridge's own
imports pad no vocabulary, and its export leaves padding rows in the Hugging Face model; ours removes them.
"""

import shutil
from pathlib import Path
from typing import Any

import yaml

from checkpoints_conversion.directories.directory import Directory, Imported, carry
from checkpoints_conversion.huggingface import companions
from checkpoints_conversion.megatron import CARRIED, TRACKER
from checkpoints_conversion.spec import ModelSpec
from checkpoints_conversion.torch_format import scalars_archive
from reasonforge.files import write_atomic

ITERATION = 0
"""The iteration of a model that was not trained here, as in Bridge's own imports."""

_WEIGHTS = f"iter_{ITERATION:07d}"
_TRAIN_STATE = {
    "step": ITERATION,
    "consumed_train_samples": 0,
    "skipped_train_samples": 0,
    "consumed_valid_samples": 0,
    "floating_point_operations_so_far": 0.0,
    "do_train": False,
    "do_valid": False,
    "do_test": False,
}
"""The fields of Bridge's TrainState (training/state.py); it names the last iteration for Bridge."""

_TOKENIZER = (
    "tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*"
)  # fmt: skip
"""The files from which Bridge makes the tokenizer."""


def _write(tree: Path, imported: Imported) -> None:
    weights = tree / _WEIGHTS
    carry(imported.model, tree / CARRIED)
    (weights / "tokenizer").mkdir()
    for path in companions(imported.model.path):
        if any(path.match(pattern) for pattern in _TOKENIZER):
            shutil.copyfile(path, weights / "tokenizer" / path.name)
    state = scalars_archive(_TRAIN_STATE)
    write_atomic(weights / "train_state.pt", state)
    write_atomic(tree / "latest_train_state.pt", state)
    write_atomic(weights / "run_config.yaml", yaml.safe_dump(_run_config(imported)))
    write_atomic(tree / TRACKER, str(ITERATION))


def _common(_: Imported) -> dict[str, Any]:
    """Bridge goes by the description of the content when it builds the state to load (training/checkpointing.py)."""
    return {
        "checkpoint_version": 3.0,
        "iteration": ITERATION,
        "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
    }


def _run_config(imported: Imported) -> dict[str, Any]:
    """What `load_model_config`, `load_tokenizer` and `load_checkpoint` read."""
    bridge = "megatron.bridge"
    return {
        "_target_": f"{bridge}.training.config.ConfigContainer",
        "model": _model(imported),
        "checkpoint": {
            "_target_": f"{bridge}.training.config.CheckpointConfig",
            "ckpt_format": "torch_dist",
            "fully_parallel_save": True,
            "save_optim": False,
            "save_rng": False,
        },
        "tokenizer": {
            "_target_": f"{bridge}.training.tokenizers.config.TokenizerConfig",
            "tokenizer_type": "HuggingFaceTokenizer",
            # An empty path stands for the directory `tokenizer` beside this file, wherever both are moved.
            "tokenizer_model": {"_target_": "pathlib.Path", "_args_": []},
        },
    }


def _model(imported: Imported) -> dict[str, Any]:
    spec, family = imported.model.spec, imported.model.family
    return {
        "_target_": "megatron.bridge.models.gpt_provider.GPTModelProvider",
        **_shape(spec),
        "add_qkv_bias": family.qkv_bias,
        "qk_layernorm": family.qk_norm,
        "make_vocab_size_divisible_by": imported.vocabulary_multiple,
        "should_pad_vocab": imported.padded_vocabulary != spec.vocabulary,
        "hf_model_id": str(imported.model.path.resolve()),
        "params_dtype": _reference(f"torch.{imported.dtype}"),
        "autocast_dtype": _reference("torch.bfloat16"),
        "bf16": imported.dtype == "bfloat16",
        "fp16": imported.dtype == "float16",
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
    }


def _shape(spec: ModelSpec) -> dict[str, Any]:
    """A model's shape under the names of Bridge's GPTModelProvider and megatron-core's TransformerConfig."""
    found: dict[str, Any] = {
        "num_layers": spec.layers,
        "hidden_size": spec.hidden,
        "ffn_hidden_size": spec.ffn,
        "num_attention_heads": spec.heads,
        "num_query_groups": spec.groups,
        "kv_channels": spec.head_dim,
        "vocab_size": spec.vocabulary,
        "seq_length": spec.positions,
        "layernorm_epsilon": spec.norm_epsilon,
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
        "rotary_base": spec.rope_theta,
        "rotary_percent": 1.0,
        "rope_scaling": spec.rope_factor is not None,
        "rope_scaling_factor": 1.0 if spec.rope_factor is None else spec.rope_factor,
        "gated_linear_unit": True,
        "activation_func": _reference("torch.nn.functional.silu"),
        "add_bias_linear": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "share_embeddings_and_output_weights": spec.tied,
        "init_method_std": spec.initializer_range,
    }
    if spec.experts:
        found |= {
            "num_moe_experts": spec.experts,
            "moe_ffn_hidden_size": spec.expert_ffn,
            "moe_router_topk": spec.experts_per_token,
            "moe_router_pre_softmax": not spec.norm_topk,
            "moe_router_load_balancing_type": "aux_loss",
            "moe_aux_loss_coeff": 0.001,
            "moe_token_dispatcher_type": "alltoall",
            "moe_grouped_gemm": True,
            "moe_permute_fusion": True,
        }
    return found


def _reference(name: str) -> dict[str, Any]:
    """A Python object by its name, which Bridge imports and does not call."""
    return {"_target_": name, "_call_": False}


BRIDGE = Directory(weights=_WEIGHTS, prefix="", vocabulary_multiple=1, common=_common, write=_write)
