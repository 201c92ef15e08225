"""NeMo 2's directory: `weights/` and `context/`, as `nemo.collections.llm.import_ckpt` leaves them.

`llm.finetune` takes it as a restore path. `context/` is written as text, so that an import needs no NeMo; the shapes of
all files are those of nemo_toolkit 2.7.3, and a test loads them into the real one.
"""

import shutil
from pathlib import Path
from typing import Any

from checkpoints_conversion.directories.directory import Directory, Imported, carry
from checkpoints_conversion.directories.fiddle import Call, Symbol, render_json, render_yaml
from checkpoints_conversion.huggingface import CONFIG, companions
from checkpoints_conversion.megatron import CARRIED, CONTEXT, NEMO_TOKENIZER
from checkpoints_conversion.spec import ModelSpec
from checkpoints_conversion.untrusted import read_json
from reasonforge.errors import RequestError
from reasonforge.files import write_atomic, write_json

_MODELS = "nemo.collections.llm.gpt.model"
_CLASSES = {
    "llama": ("llama", "LlamaConfig", "LlamaModel"),
    "qwen2": ("qwen2", "Qwen2Config", "Qwen2Model"),
    "qwen3": ("qwen3", "Qwen3Config", "Qwen3Model"),
    "qwen3_moe": ("qwen3", "Qwen3MoEConfig", "Qwen3Model"),
}
"""Module, configuration and model class of each family."""
_SCALED_LLAMA = "Llama31Config"
"""The only configuration of NeMo's that applies Llama 3's rope scaling."""

_GENERATION = "generation_config.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def _write(tree: Path, imported: Imported) -> None:
    context = tree / CONTEXT
    carry(imported.model, tree / CARRIED)
    _carry_tokenizer(imported, context / NEMO_TOKENIZER)
    if (imported.model.path / _GENERATION).is_file():
        (context / "artifacts").mkdir(exist_ok=True)
        shutil.copyfile(imported.model.path / _GENERATION, context / "artifacts" / _GENERATION)
    model = _model(imported)
    write_atomic(context / "model.yaml", render_yaml(model))
    write_atomic(context / "io.json", render_json(_trainer_context(model)))


def _carry_tokenizer(imported: Imported, target: Path) -> None:
    """Write the directory that NeMo takes its tokenizer from, and copies into every checkpoint that it saves.

    The model's other files are in it too: so config.json is in those checkpoints, and they export without a reference.
    It has no directories below it, which NeMo could not copy.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in companions(imported.model.path):
        if path.parent == imported.model.path:
            shutil.copyfile(path, target / path.name)
    settings = target / _TOKENIZER_CONFIG
    if settings.is_file():
        found = read_json(settings)
        if isinstance(found, dict) and _for_transformers_4(found) != found:
            write_json(settings, _for_transformers_4(found))


def _for_transformers_4(settings: dict[str, Any]) -> dict[str, Any]:
    """What transformers 5 wrote, in words that NeMo's transformers 4 has and transformers 5 still reads."""
    changed = dict(settings)
    if changed.get("tokenizer_class") == "TokenizersBackend":
        changed["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(changed.get("extra_special_tokens"), list):
        changed["additional_special_tokens"] = changed.pop("extra_special_tokens")
    return changed


def _trainer_context(model: Call) -> Call:
    """The whole context: beside the model the trainer that NeMo's importer saves with, which has no say in training."""
    strategy = Call(
        Symbol("nemo.lightning.pytorch.strategies.megatron_strategy", "MegatronStrategy"),
        {"ckpt_save_optimizer": False, "kwargs": {"always_save_context": True}},
    )
    trainer = Call(
        Symbol("nemo.lightning.pytorch.trainer", "Trainer"), {"accelerator": "cpu", "strategy": strategy, "devices": 1}
    )
    return Call(Symbol("nemo.lightning.io.pl", "TrainerContext"), {"model": model, "trainer": trainer, "extra": {}})


def _model(imported: Imported) -> Call:
    """The model; paths in it are relative to `context/`."""
    module, config, model = _CLASSES[imported.model.family.model_type]
    if imported.model.spec.rope_factor is not None:
        if module != "llama":
            where = f"{imported.model.path / CONFIG}: rope_scaling"
            raise RequestError(where, f"NeMo scales Llama's rope only, not {imported.model.family.architecture}'s")
        config = _SCALED_LLAMA
    arguments: dict[str, Any] = {"config": Call(Symbol(f"{_MODELS}.{module}", config), _config(imported))}
    if any((imported.model.path / name).is_file() for name in _TOKENIZER_FILES):
        arguments["tokenizer"] = Call(
            Symbol("nemo.collections.common.tokenizers.huggingface.auto_tokenizer", "AutoTokenizer"),
            {"pretrained_model_name": NEMO_TOKENIZER, "trust_remote_code": False},
        )
    return Call(Symbol(f"{_MODELS}.{module}", model), arguments)


def _config(imported: Imported) -> dict[str, Any]:
    """Fields of NeMo's GPTConfig. What its importers leave to a default that fits released models only, is said here.

    `vocab_size` counts the rows that the embedding has in `weights/`.
    """
    spec, family = imported.model.spec, imported.model.family
    found = _shape(spec) | {
        "add_qkv_bias": family.qkv_bias,
        "qk_layernorm": family.qk_norm,
        "make_vocab_size_divisible_by": imported.vocabulary_multiple,
        "vocab_size": imported.padded_vocabulary,
        "fp16": imported.dtype == "float16",
        "bf16": imported.dtype == "bfloat16",
        "params_dtype": Symbol("torch", imported.dtype),
    }
    if (imported.model.path / _GENERATION).is_file():
        found["generation_config"] = Call(
            Symbol("nemo.lightning.io.artifact.hf_auto", "from_pretrained"),
            {
                "auto_cls": Symbol("transformers.generation.configuration_utils", "GenerationConfig"),
                "pretrained_model_name_or_path": "./artifacts",
            },
        )
    return found


def _shape(spec: ModelSpec) -> dict[str, Any]:
    found: dict[str, Any] = {
        "num_layers": spec.layers,
        "hidden_size": spec.hidden,
        "ffn_hidden_size": spec.ffn,
        "num_attention_heads": spec.heads,
        "num_query_groups": spec.groups,
        "kv_channels": spec.head_dim,
        "seq_length": spec.positions,
        "position_embedding_type": "rope",
        "rotary_base": int(spec.rope_theta) if spec.rope_theta.is_integer() else spec.rope_theta,
        "rotary_percent": 1.0,
        "normalization": "RMSNorm",
        "layernorm_epsilon": spec.norm_epsilon,
        "activation_func": Symbol("torch.nn.functional", "silu"),
        "gated_linear_unit": True,
        "add_bias_linear": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "init_method_std": spec.initializer_range,
        "share_embeddings_and_output_weights": spec.tied,
    }
    if spec.rope_factor is not None:
        found["scale_factor"] = spec.rope_factor
    if spec.model_type.startswith("qwen3"):
        found["max_position_embeddings"] = spec.positions
    if spec.experts:
        found |= {
            "num_moe_experts": spec.experts,
            "moe_ffn_hidden_size": spec.expert_ffn,
            "moe_router_topk": spec.experts_per_token,
            "moe_router_pre_softmax": not spec.norm_topk,
        }
    return found


def _common(_imported: Imported) -> dict[str, Any]:
    """What Lightning saves of a trainer that has made no step, and NeMo of how it saved."""
    return {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {},
        "loops": {
            "fit_loop": _fit_loop(),
            "validate_loop": {"state_dict": {}, "batch_progress": _batches() | {"is_last_batch": False}},
            "test_loop": {"state_dict": {}, "batch_progress": _batches() | {"is_last_batch": False}},
            "predict_loop": {"state_dict": {}, "batch_progress": _batches()},
        },
        "callbacks": {},
        "optimizer_states": {},
        "lr_schedulers": [],
        "content_metadata": {
            "singleton_local_shards": False,
            "chained_optim_avoid_prefix": True,
            "distrib_optim_sharding_type": "dp_reshardable",
        },
    }


def _fit_loop() -> dict[str, Any]:
    optimizer = {"step": _progress("ready", "completed"), "zero_grad": _progress("ready", "completed", "started")}
    return {
        "state_dict": {},
        "epoch_loop.state_dict": {"_batches_that_stepped": 0},
        "epoch_loop.batch_progress": _batches() | {"is_last_batch": False},
        "epoch_loop.scheduler_progress": _progress("ready", "completed"),
        "epoch_loop.automatic_optimization.state_dict": {},
        "epoch_loop.automatic_optimization.optim_progress": {"optimizer": optimizer},
        "epoch_loop.manual_optimization.state_dict": {},
        "epoch_loop.manual_optimization.optim_step_progress": _progress("ready", "completed"),
        "epoch_loop.val_loop.state_dict": {},
        "epoch_loop.val_loop.batch_progress": _batches() | {"is_last_batch": False},
        "epoch_progress": _batches(),
    }


def _batches() -> dict[str, Any]:
    return _progress("ready", "completed", "started", "processed")


def _progress(*counters: str) -> dict[str, Any]:
    return {scope: dict.fromkeys(counters, 0) for scope in ("total", "current")}


NEMO = Directory(vocabulary_multiple=128, weights="weights", prefix="module.", common=_common, write=_write)
