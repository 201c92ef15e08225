"""Options of the engines on Megatron-core for the tests of their configurations: the shipped recipes', and variants."""

from typing import Any

from recipes.engines.megatron.options import MegatronEngine

SHIPPED = {
    "distill-qwen2.5-7b-2n8g": "Qwen2.5-7B",
    "distill-qwen3-8b-2n8g-fp8": "Qwen3-8B",
    "distill-llama3.1-8b-2n8g": "Llama-3.1-8B",
    "distill-llama3.1-70b-8n8g": "Llama-3.1-70B",
    "distill-qwen2.5-1.5b-1n1g": "Qwen2.5-1.5B",
}
"""The shipped recipes that train on Megatron-core, and the shape of their model."""

FP8 = {"format": "e4m3", "fp8_parameters": False, "gradients_fp32": False}
SOME_BF16 = {"first_layers_bf16": 2, "last_layers_bf16": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "optimizer": {
        "learning_rate": 3e-4, "min_learning_rate_ratio": 0.25, "warmup_steps": 7, "adam_beta1": 0.8,
        "adam_beta2": 0.97, "adam_epsilon": 1e-6, "weight_decay": 0.05, "max_grad_norm": 0.3,
        "distributed_optimizer": False, "sequence_length": 512,
    },
    "layout": {
        "parallelism": {
            "tensor": 2, "pipeline": 4, "virtual_pipeline": 3, "context": 2, "expert": 2, "expert_tensor": 1,
            "sequence_parallel": True,
        },
        "sequence_length": 64,
        "overlap": {"tensor_parallel": True, "pipeline": False},
        "precision": {"type": "bf16", "gradients_fp32": False},
    },
    "no overlap": {
        "overlap": {"gradients": False, "parameters": False},
        "parallelism": {"pipeline": 2},
        "recompute": {"type": "selective", "modules": ["mlp", "layernorm"]},
    },
    "interleaved": {
        "parallelism": {"pipeline": 2, "virtual_pipeline": 2},
        "overlap": {"pipeline": True},
        "recompute": {"type": "full", "method": "block", "layers": 3},
    },
    "kernels": {
        "attention_backend": "flash",
        "fusions": {
            "rope": False, "bias_activation": False, "bias_dropout": True, "softmax": False, "norm": True,
            "cross_entropy": False, "gradient_accumulation": False,
        },
    },
    "more kernels": {"fusions": {"rope": True, "bias_activation": True, "gradient_accumulation": True}},
    "local": {"layer_spec": "local", "precision": {"type": "fp32"}},
    "fp8-delayed": {
        "precision": {
            "type": "fp8-delayed", **FP8, "margin": 2, "amax_history": 64, "amax_algorithm": "most_recent",
            "attention": True, "multi_head_attention": True,
        },
        "attention_backend": "fused",
    },
    "fp8-delayed, as it is": {"precision": {"type": "fp8-delayed"}},
    "fp8-current": {"precision": {"type": "fp8-current", **FP8, **SOME_BF16, "attention": True}},
    "fp8-current, all layers": {
        "precision": {"type": "fp8-current", "first_layers_bf16": 0, "last_layers_bf16": 0},
    },
    "fp8-blockwise": {"precision": {"type": "fp8-blockwise", "format": "e4m3", "fp8_parameters": True, **SOME_BF16}},
    "mxfp8": {"precision": {"type": "mxfp8", "format": "hybrid", **SOME_BF16}},
    "mxfp8, bf16 weights": {"precision": {"type": "mxfp8", "fp8_parameters": False}},
    "adapters": {"lora": {"rank": 8, "alpha": 64, "dropout": 0.25, "targets": ["linear_qkv", "linear_fc2"]}},
    "rhythm": {
        "asynchronous_save": False, "fully_reshardable": True, "validate_every": 20, "validation_batches": 3,
        "log_every": 4,
        "profile": {"type": "nsys", "first_step": 2, "last_step": 5, "ranks": [1, 3], "shapes": True},
    },
    "traced": {"profile": {"type": "torch", "first_step": 2, "last_step": 5}},
    "distilled": {"distillation": {"temperature": 2.0, "next_token_loss": True, "scale": 0.5}, "steps": 30},
}  # fmt: skip
"""Engines that together give every option a value that is neither ours nor the framework's default."""

RECIPE_NAMES = {
    "fp8-delayed": "delayed", "fp8-current": "tensorwise", "fp8-blockwise": "blockwise", "mxfp8": "mxfp8",
}  # fmt: skip
"""What megatron-core calls the recipes of Transformer Engine."""

TE_RECIPES = {
    "fp8-delayed": "DelayedScaling",
    "fp8-current": "Float8CurrentScaling",
    "fp8-blockwise": "Float8BlockScaling",
    "mxfp8": "MXFP8BlockScaling",
}


def options_of(engine: MegatronEngine) -> dict[str, Any]:
    """The options by their paths in the table."""
    found: dict[str, Any] = {}
    for name, value in engine.model_dump(mode="json").items():
        found |= {f"{name}.{key}": it for key, it in value.items()} if isinstance(value, dict) else {name: value}
    return found


def transformer_engine_mismatches(precision: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What of a precision does not reach Transformer Engine's recipe objects; `found` is the answer of fp8_side.py."""
    kind, wrong = precision["type"], []
    first, last = precision.get("first_layers_bf16", 0), precision.get("last_layers_bf16", 0)
    in_bf16 = [layer for layer in range(8) if layer < first or layer >= 8 - last]
    if [int(layer) for layer, context in found["layers"].items() if context is None] != in_bf16:
        wrong.append(f"not in bf16: {in_bf16}")
    taken: dict[str, Any] = {"fp8_format": precision["format"].upper()}
    if kind in ("fp8-delayed", "fp8-current"):
        taken["fp8_dpa"] = precision["attention"]
    if kind == "fp8-delayed":
        taken |= {
            "margin": precision["margin"],
            "amax_history_len": precision["amax_history"],
            "amax_compute_algo": precision["amax_algorithm"],
            "fp8_mha": precision["multi_head_attention"],
        }
    contexts = [*filter(None, found["layers"].values())]
    for context in contexts:
        if (context["function"], context["arguments"]["enabled"], context["recipe"], context["taken"]) != (
            "fp8_autocast", True, TE_RECIPES[kind], taken,
        ):  # fmt: skip
            wrong.append(f"{context} is not {taken}")
        # of what would be dropped, nothing is an option of ours
        if not set(context["dropped"]) <= {"device", "params_dtype", "override_linear_precision"}:
            wrong.append(f"dropped: {context['dropped']}")
    if not contexts:
        wrong.append("no layer is in FP8")
    at_init = found["init"] and (found["init"]["function"], found["init"]["recipe"])
    if at_init != (("fp8_model_init", TE_RECIPES[kind]) if precision["fp8_parameters"] else None):
        wrong.append(f"weights are made by {at_init}")
    return wrong
