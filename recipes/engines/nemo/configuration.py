"""A recipe's options as NeMo's own: a nemo-run Partial, built on NeMo's recipe for the model where it has one.

`training` calls `training_recipe` in NeMo's environment and runs what comes back; a test builds every shipped recipe's
and compares it with the recipe, key by key. `NEMO_KEYS` says where each option goes.
"""

from pathlib import Path
from typing import Any

from reasonforge.errors import RequestError
from recipes.engines.megatron.options import BUCKET, LogitDistillation, NsysProfile
from recipes.engines.megatron.precision import BF16, FP32, MXFP8, FP8Blockwise, FP8Current, FP8Delayed, core_fields
from recipes.engines.nemo import models
from recipes.engines.nemo.options import NeMoEngine

_DDP, _OPTIMIZER = "trainer.strategy.ddp", "optim.config"
_OVERLAP = "trainer.callbacks.MegatronCommOverlapCallback"
_PROFILES = ("trainer.callbacks.NsysCallback", "trainer.callbacks.PytorchProfilerCallback")
_DATA = "recipes.engines.nemo.data"
_BATCHES = "recipes.engines.megatron.batches"
_CALLBACKS = "recipes.engines.nemo.callbacks"
_TRAINING = "recipes.engines.megatron.training"

NEMO_KEYS: dict[str, tuple[str, ...]] = {
    "steps": ("trainer.max_steps", "optim.lr_scheduler.max_steps"),
    "tokens": (_BATCHES,),
    "batch_size": (_BATCHES,),
    "micro_batch_size": (_DATA,),
    "sequence_length": ("model.config.seq_length",),
    "packed": (_BATCHES,),
    "learning_rate": (f"{_OPTIMIZER}.lr",),
    "min_learning_rate_ratio": ("optim.lr_scheduler.min_lr",),
    "warmup_steps": ("optim.lr_scheduler.warmup_steps",),
    "adam_beta1": (f"{_OPTIMIZER}.adam_beta1",),
    "adam_beta2": (f"{_OPTIMIZER}.adam_beta2",),
    "adam_epsilon": (f"{_OPTIMIZER}.adam_eps",),
    "weight_decay": (f"{_OPTIMIZER}.weight_decay",),
    "max_grad_norm": (f"{_OPTIMIZER}.clip_grad",),
    "precision.type": ("trainer.plugins.precision", "trainer.plugins.fp8_recipe"),
    "precision.gradients_fp32": ("trainer.plugins.grad_reduce_in_fp32", f"{_DDP}.grad_reduce_in_fp32"),
    "precision.format": ("trainer.plugins.fp8",),
    "precision.fp8_parameters": ("trainer.plugins.fp8_param_gather",),
    "precision.first_layers_bf16": ("trainer.plugins.num_layers_at_start_in_bf16",),
    "precision.last_layers_bf16": ("trainer.plugins.num_layers_at_end_in_bf16",),
    "precision.margin": ("trainer.plugins.fp8_margin",),
    "precision.amax_history": ("trainer.plugins.fp8_amax_history_len",),
    "precision.amax_algorithm": ("trainer.plugins.fp8_amax_compute_algo",),
    "precision.attention": ("trainer.plugins.fp8_dot_product_attention",),
    "precision.multi_head_attention": ("trainer.plugins.fp8_multi_head_attention",),
    "parallelism.tensor": ("trainer.strategy.tensor_model_parallel_size",),
    "parallelism.pipeline": ("trainer.strategy.pipeline_model_parallel_size",),
    "parallelism.virtual_pipeline": ("trainer.strategy.virtual_pipeline_model_parallel_size",),
    "parallelism.context": ("trainer.strategy.context_parallel_size",),
    "parallelism.expert": ("trainer.strategy.expert_model_parallel_size",),
    "parallelism.expert_tensor": ("trainer.strategy.expert_tensor_parallel_size",),
    "parallelism.sequence_parallel": ("trainer.strategy.sequence_parallel",),
    "distributed_optimizer": (f"{_OPTIMIZER}.use_distributed_optimizer", f"{_DDP}.use_distributed_optimizer"),
    "recompute.type": ("model.config.recompute_granularity",),
    "recompute.modules": ("model.config.recompute_modules",),
    "recompute.method": ("model.config.recompute_method",),
    "recompute.layers": ("model.config.recompute_num_layers",),
    "layer_spec": ("model.config.transformer_layer_spec",),
    "attention_backend": ("model.config.attention_backend",),
    "fusions.rope": ("model.config.apply_rope_fusion",),
    "fusions.bias_activation": ("model.config.bias_activation_fusion",),
    "fusions.bias_dropout": ("model.config.bias_dropout_fusion",),
    "fusions.softmax": ("model.config.masked_softmax_fusion",),
    "fusions.norm": ("model.config.persist_layer_norm",),
    "fusions.cross_entropy": ("model.config.cross_entropy_loss_fusion",),
    "fusions.gradient_accumulation": ("model.config.gradient_accumulation_fusion",),
    "overlap.gradients": (f"{_DDP}.overlap_grad_reduce", f"{_OVERLAP}.overlap_grad_reduce"),
    "overlap.parameters": (f"{_DDP}.overlap_param_gather", f"{_OVERLAP}.overlap_param_gather"),
    "overlap.tensor_parallel": (f"{_OVERLAP}.tp_comm_overlap",),
    "overlap.pipeline": (f"{_OVERLAP}.overlap_p2p_comm",),
    "lora.rank": ("peft.dim",),
    "lora.alpha": ("peft.alpha",),
    "lora.dropout": ("peft.dropout",),
    "lora.targets": ("peft.target_modules",),
    "distillation.temperature": ("temperature",),
    "distillation.next_token_loss": ("next_token_loss",),
    "distillation.scale": ("scale",),
    "save_every": (_CALLBACKS,),
    "asynchronous_save": ("trainer.strategy.ckpt_async_save",),
    "fully_reshardable": ("trainer.strategy.ckpt_optim_fully_reshardable",),
    "validate_every": ("trainer.val_check_interval",),
    "validation_batches": ("trainer.limit_val_batches",),
    "log_every": ("trainer.log_every_n_steps", "trainer.strategy.progress_interval"),
    "log_to": (_TRAINING,),
    "profile.type": _PROFILES,
    "profile.first_step": tuple(f"{callback}.start_step" for callback in _PROFILES),
    "profile.last_step": tuple(f"{callback}.end_step" for callback in _PROFILES),
    "profile.ranks": (f"{_PROFILES[0]}.ranks",),
    "profile.shapes": (f"{_PROFILES[0]}.gen_shape",),
}
"""Every option and where it goes: keys of the Partial as `flatten` names them, or the module of ours that reads it.
Where several are named, the option goes into all of them, or into the one of its type."""

_RECIPES: dict[type[BF16], str] = {
    BF16: "bf16_mixed",
    FP8Delayed: "bf16_with_fp8_mixed",
    FP8Current: "bf16_with_fp8_current_scaling_mixed",
    FP8Blockwise: "bf16_with_fp8_subchannel_scaling_mixed",
    MXFP8: "bf16_with_mxfp8_mixed",
}
"""NeMo's own plugin for each precision."""


def training_recipe(
    engine: NeMoEngine,
    model: Path,
    *,
    gpus_per_node: int,
    nodes: int,
    scratch: Path,
    data: Any,
    teacher: Path | None = None,
) -> Any:
    """The whole training as a nemo_run.Partial: building it and calling what comes out trains.

    Args:
        model: a directory of NeMo 2, whose context/ says what the model is.
        scratch: where checkpoints, logs and profiles go.
        data: the LightningDataModule, or its run.Config.
        teacher: the directory of NeMo 2 whose logits are learned; with `engine.distillation` only.
    Raises RequestError where model and teacher, or teacher and options, do not go together.
    """
    if (teacher is None) != (engine.distillation is None):
        raise RequestError(
            "engine.distillation, inputs.teacher",
            "one is given without the other",
            "give both to learn a teacher's logits, or neither to learn its traces",
        )
    base = models.recipe_of(model, nodes=nodes, gpus_per_node=max(gpus_per_node, 1), lora=engine.lora is not None)
    models.apply_options(base.model, engine, data)
    if engine.layer_spec == "local":  # the callback that sets it for others asks the GPU what it is
        base.model.config.overlap_p2p_comm = engine.overlap_pipeline
        base.model.config.batch_p2p_comm = not engine.overlap_pipeline
    if teacher is not None and engine.distillation is not None:
        base = _with_teacher(base, engine, engine.distillation, model, teacher, data)
    _set_trainer(base.trainer, engine, nodes, max(gpus_per_node, 1), scratch)
    base.optim = _optimizer(engine)
    base.log = _log(scratch)
    base.resume = _resume(model)
    base.data = data
    if engine.lora is not None:
        base.peft.dim, base.peft.alpha = engine.lora.rank, engine.lora.alpha
        base.peft.dropout, base.peft.target_modules = engine.lora.dropout, list(engine.lora.targets)
    return base


def _with_teacher(
    base: Any,
    engine: NeMoEngine,
    distillation: LogitDistillation,
    model: Path,
    teacher: Path,
    data: Any,
) -> Any:
    """NeMo's distillation recipe with our own function in place of `llm.distill`, which reads the student's
    configuration from its checkpoint and so would lose every option of it."""
    import nemo_run
    from nemo.collections.llm.modelopt.recipes import distillation_recipe

    from recipes.engines.nemo.distillation import distill

    theirs = distillation_recipe(str(model), str(teacher))
    teacher_model = models.model_of(teacher)
    models.apply_options(teacher_model, engine, data, trained=False)
    if teacher_model.config.vocab_size != base.model.config.vocab_size:
        raise RequestError(
            f"{teacher}: vocab_size",
            f"the teacher has {teacher_model.config.vocab_size} and the student {base.model.config.vocab_size}, "
            "and the divergence is between distributions over one vocabulary",
            "take a teacher with the student's tokenizer, and import both with the same pad_vocabulary",
        )
    return nemo_run.Partial(
        distill,
        model=base.model,
        teacher=teacher_model,
        teacher_model_path=str(teacher),
        temperature=distillation.temperature,
        next_token_loss=distillation.next_token_loss,
        scale=distillation.scale,
        trainer=theirs.trainer,
        tokenizer="model",
    )


def _set_trainer(trainer: Any, engine: NeMoEngine, nodes: int, gpus_per_node: int, scratch: Path) -> None:
    """Lightning's trainer, its strategy and its callbacks."""
    import torch

    trainer.accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    trainer.num_nodes, trainer.devices = nodes, gpus_per_node
    trainer.max_steps = engine.steps
    trainer.log_every_n_steps = engine.log_every
    validated = engine.validate_every is not None
    trainer.limit_val_batches = engine.validation_batches if validated else 0
    trainer.val_check_interval = engine.validate_every if validated else engine.steps
    trainer.check_val_every_n_epoch = None  # the interval counts steps, through all epochs
    trainer.limit_test_batches = 0
    trainer.num_sanity_val_steps = 0
    trainer.enable_progress_bar = False
    trainer.plugins = _precision(engine)
    trainer.callbacks = list(_callbacks(engine, scratch))
    _set_strategy(trainer.strategy, engine)


def _set_strategy(strategy: Any, engine: NeMoEngine) -> None:
    """Megatron's parallelism, gradients and checkpoints.

    NeMo's fine-tuning recipe loads weights with `log_all`, which trains on where some are missing; here that is an
    error.
    """
    import nemo_run
    import torch
    from megatron.core.distributed import DistributedDataParallelConfig

    layout = engine.parallelism
    strategy.tensor_model_parallel_size = layout.tensor
    strategy.pipeline_model_parallel_size = layout.pipeline
    strategy.virtual_pipeline_model_parallel_size = layout.virtual_pipeline
    strategy.context_parallel_size = layout.context
    strategy.expert_model_parallel_size = layout.expert
    strategy.expert_tensor_parallel_size = layout.expert_tensor
    strategy.sequence_parallel = layout.sequence_parallel
    fp32 = isinstance(engine.precision, FP32)
    strategy.pipeline_dtype = None if layout.pipeline == 1 else torch.float32 if fp32 else torch.bfloat16
    strategy.gradient_as_bucket_view = True
    strategy.ckpt_async_save = engine.asynchronous_save
    if engine.fully_reshardable:  # NeMo 2.5 has no such key
        strategy.ckpt_optim_fully_reshardable = True
    strategy.ckpt_parallel_load = True
    strategy.ckpt_load_strictness = None
    strategy.progress_interval = engine.log_every
    strategy.ddp = nemo_run.Config(
        DistributedDataParallelConfig,
        check_for_nan_in_grad=False,  # our callbacks look themselves, and name the rows
        grad_reduce_in_fp32=engine.gradients_fp32,
        use_distributed_optimizer=engine.distributed_optimizer,
        overlap_grad_reduce=engine.overlap.gradients,
        overlap_param_gather=engine.overlap_parameters,
        bucket_size=BUCKET,
        average_in_collective=False,  # each token of the batch weighs the same: see models.apply_options
    )


def _precision(engine: NeMoEngine) -> Any:
    """NeMo's own plugin of this precision, with every field of ours."""
    import nemo_run
    import torch
    from nemo.collections.llm.recipes.precision import mixed_precision
    from nemo.lightning import MegatronMixedPrecision

    precision = engine.precision
    if isinstance(precision, FP32):
        return nemo_run.Config(
            MegatronMixedPrecision, precision="32", params_dtype=torch.float32, grad_reduce_in_fp32=True
        )
    plugin = getattr(mixed_precision, _RECIPES[type(precision)])()
    for name, value in core_fields(precision).items():
        setattr(plugin, name, value)
    return plugin


def _optimizer(engine: NeMoEngine) -> Any:
    """NeMo's Adam with a cosine, from a warm-up to the floor."""
    from nemo.collections.llm.recipes.optim.adam import distributed_fused_adam_with_cosine_annealing

    optimizer = distributed_fused_adam_with_cosine_annealing(
        precision="32" if isinstance(engine.precision, FP32) else "bf16-mixed",
        warmup_steps=engine.warmup_steps,
        constant_steps=0,
        adam_beta1=engine.adam_beta1,
        adam_beta2=engine.adam_beta2,
        max_lr=engine.learning_rate,
        min_lr=engine.learning_rate * engine.min_learning_rate_ratio,
        clip_grad=engine.max_grad_norm,
    )
    optimizer.lr_scheduler.max_steps = engine.steps
    optimizer.config.adam_eps = engine.adam_epsilon
    optimizer.config.weight_decay = engine.weight_decay
    optimizer.config.use_distributed_optimizer = engine.distributed_optimizer
    return optimizer


def _callbacks(engine: NeMoEngine, scratch: Path) -> Any:
    """NeMo's own callbacks; ours come with `training`. The overlap's asks the GPU what it is, so there must be one."""
    import nemo_run
    from nemo.lightning.pytorch.callbacks import NsysCallback, PytorchProfilerCallback
    from nemo.lightning.pytorch.callbacks.megatron_comm_overlap import MegatronCommOverlapCallback

    overlap, layout = engine.overlap, engine.parallelism
    if engine.layer_spec == "te":
        yield nemo_run.Config(
            MegatronCommOverlapCallback,
            tp_comm_overlap=overlap.tensor_parallel,
            overlap_p2p_comm=engine.overlap_pipeline,
            batch_p2p_comm=layout.pipeline > 1 and not engine.overlap_pipeline,
            overlap_grad_reduce=overlap.gradients,
            overlap_param_gather=engine.overlap_parameters,
            bucket_size=BUCKET,
        )
    profile = engine.profile  # NeMo looks at the end of a step, when it is counted already
    if isinstance(profile, NsysProfile):
        yield nemo_run.Config(
            NsysCallback,
            start_step=profile.first_step,
            end_step=profile.last_step + 1,
            ranks=list(profile.ranks),
            gen_shape=profile.shapes,
        )
    elif profile is not None:
        traces = scratch / "profile"
        traces.mkdir(parents=True, exist_ok=True)
        yield nemo_run.Config(
            PytorchProfilerCallback,
            start_step=profile.first_step,
            end_step=profile.last_step + 1,
            active_steps=profile.last_step - profile.first_step + 1,
            trace_dir=str(traces),
        )


def _log(scratch: Path) -> Any:
    """Where NeMo logs: `scratch/nemo`, the same at every attempt. Checkpoints and metrics are our own callbacks'."""
    import nemo_run
    from nemo import lightning as nl

    return nemo_run.Config(nl.NeMoLogger, explicit_log_dir=str(scratch / "nemo"))


def _resume(model: Path) -> Any:
    """From the last checkpoint where there is one, else from the model's weights."""
    import nemo_run
    from nemo import lightning as nl

    return nemo_run.Config(
        nl.AutoResume,
        resume_if_exists=True,
        resume_ignore_no_checkpoint=True,
        restore_config=nemo_run.Config(nl.RestoreConfig, path=str(model)),
    )


def flatten(partial: Any) -> dict[str, Any]:
    """A Partial as JSON values by dotted keys, in order; callbacks by their class, classes and functions by name."""
    found: dict[str, Any] = {}
    _flatten(partial, "", found)
    return found


def _flatten(value: Any, key: str, found: dict[str, Any]) -> None:
    import fiddle

    if isinstance(value, fiddle.Buildable):
        target = fiddle.get_callable(value)
        found[key] = target.__qualname__
        for name, argument in value.__arguments__.items():
            _flatten(argument, f"{key}.{name}" if key else name, found)
    elif isinstance(value, list | tuple) and any(isinstance(item, fiddle.Buildable) for item in value):
        for item in value:
            _flatten(item, f"{key}.{fiddle.get_callable(item).__name__}", found)
    else:
        found[key] = _plain(value)


def _plain(value: Any) -> Any:
    """A leaf as JSON: enumerations, types and functions by name."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return getattr(value, "__name__", None) or getattr(value, "name", None) or str(value)
