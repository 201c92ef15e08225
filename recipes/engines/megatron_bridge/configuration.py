"""A recipe's options as Megatron-Bridge's own: its ConfigContainer, over the model that the directory describes.

`training` calls `training_config` in Bridge's environment; a test builds every shipped recipe's and compares it with
the recipe, key by key. `BRIDGE_KEYS` says where each option goes.
"""

from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from reasonforge.errors import RequestError
from recipes.engines.megatron.options import BUCKET, LogitDistillation, NsysProfile
from recipes.engines.megatron.precision import BF16, FP32, MXFP8, FP8Blockwise, FP8Current, FP8Delayed, core_fields
from recipes.engines.megatron_bridge.models import provider_of, weights_of
from recipes.engines.megatron_bridge.options import MegatronBridgeEngine

_BATCHES = "recipes.engines.megatron.batches"
_DATA = "recipes.engines.megatron_bridge.data"

BRIDGE_KEYS: dict[str, tuple[str, ...]] = {
    "steps": ("train.train_iters", "scheduler.lr_decay_iters"),
    "tokens": (_BATCHES,),
    "batch_size": ("train.global_batch_size",),
    "micro_batch_size": ("train.micro_batch_size",),
    "sequence_length": (_BATCHES,),
    "packed": (_BATCHES,),
    "learning_rate": ("optimizer.lr",),
    "min_learning_rate_ratio": ("optimizer.min_lr",),
    "warmup_steps": ("scheduler.lr_warmup_iters", "scheduler.lr_warmup_init"),
    "adam_beta1": ("optimizer.adam_beta1",),
    "adam_beta2": ("optimizer.adam_beta2",),
    "adam_epsilon": ("optimizer.adam_eps",),
    "weight_decay": ("optimizer.weight_decay", "scheduler.start_weight_decay", "scheduler.end_weight_decay"),
    "max_grad_norm": ("optimizer.clip_grad",),
    "precision.type": ("model.fp8_recipe", "optimizer.fp8_recipe", "model.params_dtype", "optimizer.params_dtype"),
    "precision.gradients_fp32": ("ddp.grad_reduce_in_fp32",),
    "precision.format": ("model.fp8",),
    "precision.fp8_parameters": ("model.fp8_param", "ddp.fp8_param_gather"),
    "precision.first_layers_bf16": ("model.num_layers_at_start_in_bf16",),
    "precision.last_layers_bf16": ("model.num_layers_at_end_in_bf16",),
    "precision.margin": ("model.fp8_margin",),
    "precision.amax_history": ("model.fp8_amax_history_len",),
    "precision.amax_algorithm": ("model.fp8_amax_compute_algo",),
    "precision.attention": ("model.fp8_dot_product_attention",),
    "precision.multi_head_attention": ("model.fp8_multi_head_attention",),
    "parallelism.tensor": ("model.tensor_model_parallel_size",),
    "parallelism.pipeline": ("model.pipeline_model_parallel_size",),
    "parallelism.virtual_pipeline": ("model.virtual_pipeline_model_parallel_size",),
    "parallelism.context": ("model.context_parallel_size",),
    "parallelism.expert": ("model.expert_model_parallel_size",),
    "parallelism.expert_tensor": ("model.expert_tensor_parallel_size",),
    "parallelism.sequence_parallel": ("model.sequence_parallel",),
    "distributed_optimizer": ("optimizer.use_distributed_optimizer", "ddp.use_distributed_optimizer"),
    "recompute.type": ("model.recompute_granularity",),
    "recompute.modules": ("model.recompute_modules",),
    "recompute.method": ("model.recompute_method",),
    "recompute.layers": ("model.recompute_num_layers",),
    "layer_spec": ("model.transformer_layer_spec", "model.transformer_impl"),
    "attention_backend": ("model.attention_backend",),
    "fusions.rope": ("model.apply_rope_fusion",),
    "fusions.bias_activation": ("model.bias_activation_fusion",),
    "fusions.bias_dropout": ("model.bias_dropout_fusion",),
    "fusions.softmax": ("model.masked_softmax_fusion",),
    "fusions.norm": ("model.persist_layer_norm",),
    "fusions.cross_entropy": ("model.cross_entropy_loss_fusion",),
    "fusions.gradient_accumulation": ("model.gradient_accumulation_fusion",),
    "overlap.gradients": ("ddp.overlap_grad_reduce",),
    "overlap.parameters": ("ddp.overlap_param_gather", "optimizer.overlap_param_gather"),
    "overlap.tensor_parallel": ("model.tp_comm_overlap",),
    "overlap.pipeline": ("model.overlap_p2p_comm",),
    "lora.rank": ("peft.dim",),
    "lora.alpha": ("peft.alpha",),
    "lora.dropout": ("peft.dropout",),
    "lora.targets": ("peft.target_modules",),
    "distillation.temperature": ("model.kd_config.logit_kl_temperature",),
    "distillation.next_token_loss": ("model.kd_config.skip_lm_loss",),
    "distillation.scale": ("model.kd_config.kd_loss_scale",),
    "save_every": ("recipes.engines.megatron_bridge.callbacks",),
    "asynchronous_save": ("checkpoint.async_save",),
    "fully_reshardable": ("checkpoint.dist_ckpt_optim_fully_reshardable",),
    "validate_every": ("train.eval_interval",),
    "validation_batches": (_BATCHES,),
    "log_every": ("logger.log_interval",),
    "log_to": ("recipes.engines.megatron.training",),
    "profile.type": ("profiling.use_nsys_profiler", "profiling.use_pytorch_profiler"),
    "profile.first_step": ("profiling.profile_step_start",),
    "profile.last_step": ("profiling.profile_step_end",),
    "profile.ranks": ("profiling.profile_ranks",),
    "profile.shapes": ("profiling.record_shapes",),
}
"""Every option and where it goes: keys of the ConfigContainer as `flatten` names them, after Bridge has laid its own
rules over it (`runtime_config_update`), or the module of ours that reads it."""

_PRECISIONS: dict[type[BF16], str] = {
    BF16: "bf16_mixed",
    FP8Delayed: "bf16_with_fp8_delayed_scaling_mixed",
    FP8Current: "bf16_with_fp8_current_scaling_mixed",
    FP8Blockwise: "bf16_with_fp8_subchannel_scaling_mixed",
    MXFP8: "bf16_with_mxfp8_mixed",
}
"""Bridge's own configuration of each precision."""


def training_config(
    engine: MegatronBridgeEngine,
    model: Path,
    *,
    gpus: int,
    scratch: Path,
    sequence_length: int,
    seed: int = 0,
    teacher: Path | None = None,
    checkpoint: Path | None = None,
) -> Any:
    """The whole training as Bridge's ConfigContainer, before Bridge's own `runtime_config_update`.

    Its `dataset` is the caller's to set: Bridge's own datasets read Bridge's own files.

    Args:
        model: a directory of Bridge, whose run_config.yaml says what the model is.
        gpus: all processes.
        scratch: where checkpoints and profiles go.
        sequence_length: of the longest sequence that the model gets.
        seed: of random numbers, such as dropout's.
        teacher: the directory of Bridge whose logits are learned; with `engine.distillation` only.
        checkpoint: the checkpoint of Bridge to go on from; None for the model's own weights.
    Raises RequestError where model and teacher, or teacher and options, do not go together.
    """
    import torch
    from megatron.bridge.training import config as bridge

    provider = _provider(engine, model, teacher, sequence_length)
    return bridge.ConfigContainer(
        model=provider,
        train=_train(engine),
        optimizer=_optimizer(engine),
        scheduler=_scheduler(engine),
        ddp=_ddp(engine),
        dataset=None,
        logger=_logger(engine, scratch),
        # Our tokens need none, and Bridge's transformers 4 cannot read what transformers 5 has written.
        tokenizer=bridge.TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=provider.vocab_size),
        checkpoint=_checkpoint(engine, model, scratch, checkpoint),
        # The CPU's torch has no NCCL.
        dist=bridge.DistributedInitConfig(
            distributed_backend="nccl" if torch.distributed.is_nccl_available() else "gloo"
        ),
        rng=bridge.RNGConfig(seed=seed),
        # Our callbacks look themselves, and name the rows.
        rerun_state_machine=bridge.RerunStateMachineConfig(check_for_nan_in_loss=False),
        mixed_precision=_precision(engine),
        comm_overlap=_overlap(engine),
        profiling=_profiling(engine, gpus),
        peft=_adapters(engine),
    )


def _provider(engine: MegatronBridgeEngine, model: Path, teacher: Path | None, sequence_length: int) -> Any:
    """What builds the model, and where its logits are learned the teacher."""
    if (teacher is None) != (engine.distillation is None):
        raise RequestError(
            "engine.distillation, inputs.teacher",
            "one is given without the other",
            "give both to learn a teacher's logits, or neither to learn its traces",
        )
    provider = provider_of(model, engine, sequence_length)
    if teacher is None or engine.distillation is None:
        return provider
    return _with_teacher(provider, engine, engine.distillation, teacher)


def _with_teacher(provider: Any, engine: MegatronBridgeEngine, distillation: LogitDistillation, teacher: Path) -> Any:
    """The student's provider as one that builds the teacher beside it, from the weights of the teacher's directory."""
    from megatron.bridge.models.distillation_provider import convert_to_distillation_provider
    from megatron.bridge.training.post_training.distillation import ModelOptDistillConfig

    beside = provider_of(teacher, engine, provider.seq_length, trained=False)
    if beside.vocab_size != provider.vocab_size:
        raise RequestError(
            f"{teacher}: vocab_size",
            f"the teacher has {beside.vocab_size} and the student {provider.vocab_size}, "
            "and the divergence is between distributions over one vocabulary",
            "take a teacher with the student's tokenizer, and import both with the same pad_vocabulary",
        )
    beside.register_pre_wrap_hook(partial(_load_weights, weights_of(teacher)))
    return convert_to_distillation_provider(
        provider,
        beside,
        ModelOptDistillConfig(
            skip_lm_loss=not distillation.next_token_loss,
            kd_loss_scale=distillation.scale,
            logit_kl_temperature=distillation.temperature,
        ),
    )


def _load_weights(weights: Path, model: Any) -> Any:
    """Give a model that was just built the weights of a checkpoint."""
    from megatron.bridge.training.checkpointing import _load_model_weights_from_checkpoint

    _load_model_weights_from_checkpoint(str(weights), model)
    return model


def _train(engine: MegatronBridgeEngine) -> Any:
    """The loop. How many validation batches there are, `training` knows; Bridge divides by their interval, too."""
    from megatron.bridge.training.config import TrainingConfig

    return TrainingConfig(
        train_iters=engine.steps,
        global_batch_size=engine.batch_size,
        micro_batch_size=engine.micro_batch_size,
        eval_interval=engine.validate_every or engine.steps,
        eval_iters=0,
    )


def _optimizer(engine: MegatronBridgeEngine) -> Any:
    from megatron.bridge.training.config import OptimizerConfig

    return OptimizerConfig(
        optimizer="adam",
        lr=engine.learning_rate,
        min_lr=engine.learning_rate * engine.min_learning_rate_ratio,
        adam_beta1=engine.adam_beta1,
        adam_beta2=engine.adam_beta2,
        adam_eps=engine.adam_epsilon,
        weight_decay=engine.weight_decay,
        clip_grad=engine.max_grad_norm,
        use_distributed_optimizer=engine.distributed_optimizer,
    )


def _scheduler(engine: MegatronBridgeEngine) -> Any:
    """A cosine, from a warm-up to the floor. It begins so that every step has the rate that NeMo gives it: Bridge's own
    warm-up would begin with a step at 0. The weight decay is the scheduler's, which Bridge's recipes change here."""
    from megatron.bridge.training.config import SchedulerConfig

    return SchedulerConfig(
        lr_decay_style="cosine",
        lr_decay_iters=engine.steps,
        lr_warmup_iters=engine.warmup_steps,
        lr_warmup_init=engine.learning_rate / (engine.warmup_steps + 1) if engine.warmup_steps else 0.0,
        start_weight_decay=engine.weight_decay,
        end_weight_decay=engine.weight_decay,
        weight_decay_incr_style="constant",
        override_opt_param_scheduler=True,
    )


def _ddp(engine: MegatronBridgeEngine) -> Any:
    from megatron.bridge.training.config import DistributedDataParallelConfig

    return DistributedDataParallelConfig(
        check_for_nan_in_grad=False,  # our callbacks look themselves, and name the rows
        grad_reduce_in_fp32=engine.gradients_fp32,
        use_distributed_optimizer=engine.distributed_optimizer,
        overlap_grad_reduce=engine.overlap.gradients,
        overlap_param_gather=engine.overlap_parameters,
        bucket_size=BUCKET,
        average_in_collective=False,  # each token of the batch weighs the same: see models.provider_of
    )


def _checkpoint(engine: MegatronBridgeEngine, model: Path, scratch: Path, checkpoint: Path | None) -> Any:
    """From a checkpoint, else from the model's weights. When to save, our callbacks know: 0 keeps Bridge from it, while
    null would have it save at the end."""
    from megatron.bridge.training.config import CheckpointConfig

    return CheckpointConfig(
        pretrained_checkpoint=str(model),
        load=None if checkpoint is None else str(checkpoint),
        save=str(scratch / "checkpoints"),
        save_interval=0,
        ckpt_format="torch_dist",
        async_save=engine.asynchronous_save,
        dist_ckpt_optim_fully_reshardable=engine.fully_reshardable,
        fully_parallel_save=True,
        fully_parallel_load=True,
        save_tokenizer_assets=False,
    )


def _logger(engine: MegatronBridgeEngine, scratch: Path) -> Any:
    """What Bridge itself prints. PyTorch's profiler writes where TensorBoard's files go; metrics are our callbacks'."""
    from megatron.bridge.training.config import LoggerConfig

    traced = engine.profile is not None and not isinstance(engine.profile, NsysProfile)
    return LoggerConfig(log_interval=engine.log_every, tensorboard_dir=str(scratch / "profile") if traced else None)


def _precision(engine: MegatronBridgeEngine) -> Any:
    """Bridge's own configuration of this precision, with every field of ours."""
    import torch
    from megatron.bridge.training.mixed_precision import MixedPrecisionConfig, get_mixed_precision_config

    precision = engine.precision
    if isinstance(precision, FP32):
        return MixedPrecisionConfig(fp32=True, params_dtype=torch.float32, pipeline_dtype=torch.float32)
    config = get_mixed_precision_config(_PRECISIONS[type(precision)])
    for name, value in core_fields(precision).items():
        setattr(config, name, value)
    return config


def _overlap(engine: MegatronBridgeEngine) -> Any:
    """Bridge's overlap, every choice of which is ours; it adds what follows from them."""
    from megatron.bridge.training.comm_overlap import CommOverlapConfig

    return CommOverlapConfig(
        tp_comm_overlap=engine.overlap.tensor_parallel,
        overlap_p2p_comm=engine.overlap_pipeline,
        batch_p2p_comm=engine.parallelism.pipeline > 1 and not engine.overlap_pipeline,
        overlap_grad_reduce=engine.overlap.gradients,
        overlap_param_gather=engine.overlap_parameters,
        bucket_size=BUCKET,
    )


def _profiling(engine: MegatronBridgeEngine, gpus: int) -> Any:
    """Bridge's steps count from 0, too. It stops nsys before step `profile_step_end`; it tells PyTorch's profiler of
    each step before it begins, so that this one is a step ahead (training/profiling.py)."""
    from megatron.bridge.training.config import ProfilingConfig

    profile = engine.profile
    if profile is None:
        return ProfilingConfig()
    if isinstance(profile, NsysProfile):
        return ProfilingConfig(
            use_nsys_profiler=True,
            profile_step_start=profile.first_step,
            profile_step_end=profile.last_step + 1,
            profile_ranks=list(profile.ranks),
            record_shapes=profile.shapes,
        )
    return ProfilingConfig(
        use_pytorch_profiler=True,
        profile_step_start=profile.first_step + 1,
        profile_step_end=profile.last_step + 2,
        profile_ranks=list(range(gpus)),
    )


def _adapters(engine: MegatronBridgeEngine) -> Any:
    from megatron.bridge.peft.lora import LoRA

    if engine.lora is None:
        return None
    return LoRA(
        target_modules=list(engine.lora.targets),
        dim=engine.lora.rank,
        alpha=engine.lora.alpha,
        dropout=engine.lora.dropout,
    )


def flatten(config: Any) -> dict[str, Any]:
    """A ConfigContainer as JSON values by dotted keys, in order; classes, functions and enumerations by name."""
    found: dict[str, Any] = {}
    _flatten(config, "", found)
    return found


def _flatten(value: Any, key: str, found: dict[str, Any]) -> None:
    if not is_dataclass(value) or isinstance(value, type):
        found[key] = _plain(value)
        return
    found[key] = type(value).__qualname__
    # A provider that distils has the fields of the student's own class, and what it distils with.
    own = getattr(value, "_super_class", None)
    names = [field.name for field in fields(own or value)] + (["teacher", "kd_config"] if own else [])
    for name in names:
        if not name.startswith("_"):
            _flatten(getattr(value, name, None), f"{key}.{name}" if key else name, found)


def _plain(value: Any) -> Any:
    """A leaf as JSON: enumerations, types and functions by name."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return getattr(value, "__name__", None) or getattr(value, "name", None) or str(value)
