"""The options that the engines on Megatron-core share, as a recipe writes them, and what megatron-core or Transformer
Engine would refuse of them, or silently drop.

`nemo.options` and `megatron_bridge.options` are the engines. Each docstring names megatron-core's key, or NeMo's;
`NEMO_KEYS` and `BRIDGE_KEYS` of the two `configuration` modules are the whole tables. Checks that need the model's
shape or the number of GPUs are `recipes.preflight`'s.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from reasonforge.artifacts import ArtifactKind
from reasonforge.config import Operational, Strict
from recipes.engines.megatron.precision import BF16, AnyPrecision, FP8Delayed, KeepAll, Recompute, is_fp8
from recipes.engines.megatron.precision import RecomputeSelective as Selective
from recipes.preflight.layout import ALIGNMENT, Core
from recipes.preflight.parallelism import Parallelism


class LoRA(Strict):
    """Train adapters only (NeMo's and Bridge's `LoRA`). Hu et al. 2021, arXiv 2106.09685."""

    rank: int = Field(32, ge=1)
    """Rank of the adapters (`dim`); the default of both."""
    alpha: int = Field(32, ge=1)
    """The adapters' output is scaled by alpha / rank; the default of both."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of the adapters' input; the default of both."""
    targets: tuple[Literal["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"], ...] = Field(
        ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"), min_length=1, strict=False
    )
    """The matrices that get one (`target_modules`); the default of both is all."""


class LogitDistillation(Strict):
    """Learn the teacher's distribution at every token, not its text only, with ModelOpt's loss.

    The forward KL divergence of the teacher from the student (Hinton et al. 2015, arXiv 1503.02531). NeMo averages it
    over each micro-batch and then over micro-batches, so that a token's weight depends on its micro-batch; with
    Megatron-Bridge each token of a step weighs the same.
    """

    temperature: float = Field(1.0, gt=0)
    """Both models' logits are divided by it (`logit_kl_temperature`). The loss is not scaled by its square: at 2,
    gradients are about a quarter as large."""
    next_token_loss: bool = False
    """Whether the cross-entropy on the traces is learned too (`skip_lm_loss` false)."""
    scale: float = Field(1.0, gt=0)
    """The divergence's share beside the cross-entropy, after it is scaled to the same size (`kd_loss_scale`). Only with
    `next_token_loss`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.scale != 1 and not self.next_token_loss:
            raise ValueError(
                f"scale = {self.scale:g}, but next_token_loss is false, and alone the divergence is not scaled; "
                "set next_token_loss: true, or leave scale out"
            )
        return self


class Fusions(Strict):
    """Fused kernels of Transformer Engine, apex and megatron-core. null: the framework's own choice for the
    model with layer_spec te, and none with layer_spec local."""

    rope: bool | None = None
    """Rotary embedding (`apply_rope_fusion`)."""
    bias_activation: bool | None = None
    """Bias and SwiGLU (`bias_activation_fusion`)."""
    bias_dropout: bool | None = None
    """Bias, dropout and residual (`bias_dropout_fusion`)."""
    softmax: bool | None = None
    """Scaled, masked softmax of unfused attention (`masked_softmax_fusion`)."""
    norm: bool | None = None
    """apex's persistent layer norm (`persist_layer_norm`)."""
    cross_entropy: bool | None = None
    """The loss over a vocabulary that GPUs share (`cross_entropy_loss_fusion`)."""
    gradient_accumulation: bool | None = None
    """Gradients of weights added in the product's own kernel; apex (`gradient_accumulation_fusion`)."""


FUSIONS = {
    "rope": "apply_rope_fusion",
    "bias_activation": "bias_activation_fusion",
    "bias_dropout": "bias_dropout_fusion",
    "softmax": "masked_softmax_fusion",
    "norm": "persist_layer_norm",
    "cross_entropy": "cross_entropy_loss_fusion",
    "gradient_accumulation": "gradient_accumulation_fusion",
}
"""megatron-core's keys of the fusions."""

BUCKET = 128 * 1024 * 1024
"""Weights whose gradients are summed at once, where `overlap.gradients` divides them (`bucket_size`). A distributed
optimizer's checkpoint goes by these buckets: NeMo and Bridge have so many for several copies of the model, but
megatron-core's 40 million for one, which then cannot go on as several."""


class Overlap(Strict):
    """Communication while the GPU computes (`MegatronCommOverlapCallback`, `CommOverlapConfig`, and DDP's settings)."""

    gradients: bool = True
    """Gradients are summed over the copies during the backward pass (`overlap_grad_reduce`)."""
    parameters: bool | None = None
    """Weights are gathered during the forward pass (`overlap_param_gather`). null: where `gradients` is true and the
    optimizer is distributed, as it must be."""
    tensor_parallel: bool = False
    """Tensor parallelism's gathers and scatters inside Transformer Engine's products (`tp_comm_overlap`)."""
    pipeline: bool | None = None
    """Activations are sent between stages while others are computed (`overlap_p2p_comm`); only in the interleaved
    schedule. null: where there is one."""


class NsysProfile(Strict):
    """Nsight Systems records some steps; it must run under `nsys profile -c cudaProfilerApi`."""

    type: Literal["nsys"] = "nsys"
    first_step: int = Field(ge=0)
    """The first step that is recorded; the run's first is 0."""
    last_step: int = Field(ge=0)
    """The last that is."""
    ranks: tuple[int, ...] = Field((0,), min_length=1, strict=False)
    """The processes that are recorded; 0 is the first node's first GPU."""
    shapes: bool = False
    """Whether operators' input shapes are recorded (`gen_shape`)."""


class TorchProfile(Strict):
    """PyTorch's profiler records some steps of every process, into `profile/` of the stage's artifact."""

    type: Literal["torch"] = "torch"
    first_step: int = Field(ge=0)
    """The first step that is recorded; the run's first is 0."""
    last_step: int = Field(ge=0)
    """The last that is."""


class MegatronEngine(Strict):
    """Train on Megatron-core: on our traces, or on a teacher's logits. The base of `MegatronEngine` and others."""

    needs: ClassVar[tuple[str, ...]]
    """The modules that must be there."""
    environment: ClassVar[str]
    """The name of the Python environment that has them; see `recipes.interpreters`."""
    directory: ClassVar[Literal["nemo", "bridge"]]
    """What it takes and makes, as `import_checkpoint` names it."""
    checkpoint: ClassVar[ArtifactKind] = "megatron_checkpoint"
    """Its kind of artifact."""
    core: ClassVar[Core]
    """The megatron-core beside it, whose rules preflight goes by."""

    type: str

    steps: int = Field(gt=0)
    """Optimizer steps (`max_steps`); the schedule ends there."""
    tokens: int | None = Field(None, gt=0)
    """Trained tokens (those that the loss is on) after which it ends, where that is earlier than `steps`."""
    batch_size: int = Field(16, gt=0)
    """Sequences, or packs of `packed`, of an optimizer step over all GPUs (`global_batch_size`)."""
    micro_batch_size: Annotated[int, Operational(), Field(gt=0)] = 1
    """Sequences that a copy of the model computes at a time (`micro_batch_size`)."""
    sequence_length: int | None = Field(None, gt=0)
    """Tokens that every sequence is padded to (`seq_length`); with `packed` those of a pack. null: each batch to its
    longest, rounded up to what layout and precision need."""
    packed: bool = False
    """Whether several rows share a sequence of `sequence_length` tokens, none of which sees another; filled by
    `data_prep.packing`, so that few tokens are padding."""

    learning_rate: float = Field(1e-5, gt=0)
    """Peak learning rate (`lr`); 1e-5 is open-r1's for full fine-tuning of 1.5B to 7B models on long traces."""
    min_learning_rate_ratio: float = Field(0.1, ge=0, lt=1)
    """Learning rate at the last step, as a part of the peak (`min_lr`); the way there is a cosine. 0.1 is open-r1's."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up (`warmup_steps`)."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay of the first moment (`adam_beta1`)."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW's decay of the second moment (`adam_beta2`); NeMo's own recipes take 0.98."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """AdamW's term in the denominator (`adam_eps`); torch's default. NeMo's own recipes take 1e-5."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay (`weight_decay`); 0 is OpenThoughts3's and open-r1's."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm (`clip_grad`)."""

    precision: AnyPrecision = BF16()
    """What it computes in."""
    parallelism: Annotated[Parallelism, Operational()] = Parallelism()
    """How the model is laid over the GPUs. What is left is data parallelism."""
    distributed_optimizer: Annotated[bool, Operational()] = True
    """Whether the copies of the model share the optimizer's state (`use_distributed_optimizer`). ZeRO stage 1. Another
    number of copies can resume it."""
    recompute: Recompute = KeepAll()
    """What the backward pass computes again, to save memory."""
    layer_spec: Annotated[Literal["te", "local"], Operational()] = "te"
    """Whose layers: Transformer Engine's, or megatron-core's own (tests, CPU)."""
    attention_backend: Annotated[Literal["auto", "flash", "fused", "unfused", "local"], Operational()] = "auto"
    """Which of Transformer Engine's attentions: FlashAttention's, cuDNN's, PyTorch's; or megatron-core's
    (`attention_backend`). auto lets it choose."""
    fusions: Annotated[Fusions, Operational()] = Fusions()
    """Fused kernels."""
    overlap: Annotated[Overlap, Operational()] = Overlap()
    """Communication while the GPU computes."""

    lora: LoRA | None = None
    """Adapters; null trains all weights. They are added to the weights after the last step."""
    distillation: LogitDistillation | None = None
    """How the teacher's logits are learned, where the stage has `inputs.teacher`; null trains on the traces alone."""

    save_every: Annotated[int, Operational(), Field(gt=0)] = 200
    """Steps between checkpoints (`every_n_train_steps`); a killed stage loses at most these."""
    asynchronous_save: Annotated[bool, Operational()] = True
    """Whether training goes on while a checkpoint is written (`ckpt_async_save`)."""
    fully_reshardable: Annotated[bool, Operational()] = False
    """Whether a distributed optimizer's checkpoints can also be resumed with other tensor and pipeline parallelism or
    another `overlap.gradients`, and not only on another number of nodes (`ckpt_optim_fully_reshardable`); every process
    gathers the state of its part of the model to save it."""
    validate_every: Annotated[int | None, Operational(), Field(gt=0)] = None
    """Steps between validations on the artifact's held-out rows (`val_check_interval`); null: none."""
    validation_batches: Annotated[int, Operational(), Field(gt=0)] = 32
    """Batches of each validation (`limit_val_batches`); 32 is the number of NeMo's recipes."""
    log_every: Annotated[int, Operational(), Field(gt=0)] = 10
    """Steps between two lines of metrics.jsonl (`log_every_n_steps`)."""
    log_to: Annotated[tuple[Literal["tensorboard", "wandb"], ...], Operational()] = Field((), strict=False)
    """Where metrics also go, beside metrics.jsonl. Weights & Biases reads its own environment variables."""
    profile: Annotated[Annotated[NsysProfile | TorchProfile, Field(discriminator="type")] | None, Operational()] = None
    """Steps that a profiler records; null: none."""

    @property
    def sequence_step(self) -> int:
        """What the length of a sequence must be a multiple of for the layout and the precision: 2 × CP pieces, shared
        once more by sequence parallelism, and FP8's alignment of the tokens on each GPU."""
        layout = self.parallelism
        shares = layout.context * (layout.tensor if layout.sequence_parallel else 1)
        pieces = shares * (2 if layout.context > 1 else 1)
        aligned = ALIGNMENT.get(self.precision.type, 1) * shares
        return max(pieces, aligned)  # both are powers of two times `shares`

    @property
    def gradients_fp32(self) -> bool:
        """Whether gradients are summed in 32 bits."""
        return not isinstance(self.precision, BF16) or self.precision.gradients_fp32

    @property
    def overlap_parameters(self) -> bool:
        """Whether weights are gathered during the forward pass."""
        asked = self.overlap.parameters
        return self.overlap.gradients and self.distributed_optimizer if asked is None else asked

    @property
    def overlap_pipeline(self) -> bool:
        """Whether activations are sent between stages while others are computed."""
        asked = self.overlap.pipeline
        return self.parallelism.virtual_pipeline is not None if asked is None else asked

    @model_validator(mode="after")
    def _check(self) -> Self:
        for check in (_batch, _schedule, _layout, _kernels, _fp8, _recompute, _overlap, _objective, _profile):
            problem = check(self)
            if problem is not None:
                raise ValueError(problem)
        return self


def _batch(engine: MegatronEngine) -> str | None:
    """What NeMo (FineTuningDataModule) and Bridge (ConfigContainer.validate) refuse."""
    if engine.batch_size % engine.micro_batch_size:
        return (
            f"micro_batch_size = {engine.micro_batch_size} does not divide batch_size = {engine.batch_size}; "
            f"choose a divisor of {engine.batch_size}"
        )
    if engine.packed and engine.micro_batch_size > 1:
        return (
            f"packed is true, and micro_batch_size = {engine.micro_batch_size}, but packed sequences are computed one "
            f"at a time; set micro_batch_size: 1 and a sequence_length {engine.micro_batch_size} times as long"
        )
    if engine.packed and engine.sequence_length is None:
        return "packed is true, but sequence_length is null; give the length of a pack"
    if engine.packed and engine.parallelism.context > 1:
        return (
            f"packed is true, but parallelism.context = {engine.parallelism.context}, and each packed row would "
            f"have to be a multiple of {2 * engine.parallelism.context} tokens; set context: 1, or packed: false"
        )
    step = engine.sequence_step
    if engine.sequence_length is not None and engine.sequence_length % step:
        below = engine.sequence_length // step * step
        return (
            f"sequence_length = {engine.sequence_length}, but parallelism and precision need a multiple of {step}; "
            f"take {f'{below} or ' if below else ''}{below + step}"
        )
    return None


def _schedule(engine: MegatronEngine) -> str | None:
    """The cosine has nothing left to go down after a warm-up to the end."""
    if engine.warmup_steps >= engine.steps:
        return f"warmup_steps = {engine.warmup_steps} is not less than steps = {engine.steps}; lower warmup_steps"
    if engine.validate_every is not None and engine.validate_every > engine.steps:
        return (
            f"validate_every = {engine.validate_every} is more than steps = {engine.steps}, so nothing would be "
            f"validated; take {engine.steps} or less, or null"
        )
    return None


def _layout(engine: MegatronEngine) -> str | None:
    """What NeMo would switch off with a warning, megatron-core would refuse, or its local layers cannot."""
    layout = engine.parallelism
    if layout.virtual_pipeline is not None and layout.pipeline == 1:
        return (
            f"parallelism.virtual_pipeline = {layout.virtual_pipeline}, but parallelism.pipeline is 1, and only "
            "stages can be interleaved; leave virtual_pipeline out, or raise pipeline"
        )
    if layout.sequence_parallel and layout.tensor == 1:
        return (
            "parallelism.sequence_parallel is true, but parallelism.tensor is 1, and its GPUs are those that "
            "share the sequence; set sequence_parallel: false, or raise tensor"
        )
    if engine.layer_spec == "local":
        for key, asked in (("context", layout.context > 1), ("sequence_parallel", layout.sequence_parallel)):
            if asked:
                return (
                    f"parallelism.{key} is {getattr(layout, key)}, but layer_spec is local, and only Transformer "
                    f"Engine's layers can; set layer_spec: te, or leave parallelism.{key} out"
                )
    return None


def _kernels(engine: MegatronEngine) -> str | None:
    """Only Transformer Engine's attention knows where packed sequences end, and only its backends can be chosen."""
    backend = engine.attention_backend
    if engine.packed and (engine.layer_spec == "local" or backend == "local"):
        key = "layer_spec" if engine.layer_spec == "local" else "attention_backend"
        return (
            f"packed is true, but {key} is local, and megatron-core's own attention does not know where packed "
            f"sequences end; set {key}: {'te' if key == 'layer_spec' else 'auto'}, or packed: false"
        )
    if backend == "local" and engine.parallelism.context > 1:
        return (
            f"attention_backend is local, but parallelism.context = {engine.parallelism.context}, and megatron-core's "
            "own attention cannot share a sequence; set attention_backend: auto, or context: 1"
        )
    if engine.layer_spec == "te":
        return None
    if backend not in ("auto", "local"):
        return (
            f"attention_backend is {backend}, but layer_spec is local, which has no choice of attention; "
            "set attention_backend: auto, or layer_spec: te"
        )
    asked = [name for name, value in engine.fusions if value and name in ("rope", "gradient_accumulation")]
    if asked:
        return (
            f"fusions.{asked[0]} is true, but layer_spec is local, and the kernel is Transformer Engine's or apex's; "
            f"leave fusions.{asked[0]} out, or set layer_spec: te"
        )
    return None


def _fp8(engine: MegatronEngine) -> str | None:
    """Float8 weights live in the distributed optimizer; FP8 attention is cuDNN's."""
    precision = engine.precision
    if not is_fp8(precision):
        return None
    if engine.layer_spec == "local":
        return (
            f"precision.type is {precision.type}, but layer_spec is local, and only Transformer Engine computes in "
            "FP8; set layer_spec: te, or precision: {type: bf16}"
        )
    if getattr(precision, "fp8_parameters", False) and not engine.distributed_optimizer and engine.lora is None:
        return (
            "precision.fp8_parameters is true, but distributed_optimizer is false, and only the distributed optimizer "
            "keeps the fp32 copy of FP8 weights; set distributed_optimizer: true, or fp8_parameters: false"
        )
    if getattr(precision, "attention", False) and engine.attention_backend not in ("auto", "fused"):
        return (
            f"precision.attention is true, but attention_backend is {engine.attention_backend}, and FP8 attention is "
            "cuDNN's; set attention_backend: fused, or attention: false"
        )
    return None


def _recompute(engine: MegatronEngine) -> str | None:
    """TransformerConfig.__post_init__."""
    found = engine.recompute
    if isinstance(found, Selective) and isinstance(engine.precision, FP8Delayed):
        wrong = [name for name in found.modules if name in ("layernorm", "moe_act")]
        if wrong:
            return (
                f"recompute.modules has {wrong[0]}, but precision.type is fp8-delayed, whose scales a second forward "
                f"pass would upset; leave {wrong[0]} out, or take precision.type fp8-current"
            )
    return None


def _overlap(engine: MegatronEngine) -> str | None:
    """What NeMo and Bridge would switch off with a warning, and megatron-core's schedules refuse."""
    overlap, layout = engine.overlap, engine.parallelism
    if overlap.parameters and not overlap.gradients:
        return (
            "overlap.parameters is true, but overlap.gradients is false, and megatron-core overlaps both or gradients "
            "alone; set overlap.gradients: true, or overlap.parameters: false"
        )
    if overlap.parameters and not engine.distributed_optimizer:
        return (
            "overlap.parameters is true, but distributed_optimizer is false, and then no weights are gathered; "
            "set distributed_optimizer: true, or overlap.parameters: false"
        )
    if overlap.tensor_parallel and (not layout.sequence_parallel or engine.layer_spec == "local"):
        key = "layer_spec is local" if layout.sequence_parallel else "parallelism.sequence_parallel is false"
        return (
            f"overlap.tensor_parallel is true, but {key}, and then it would be switched off; "
            "set parallelism.sequence_parallel: true with layer_spec: te, or overlap.tensor_parallel: false"
        )
    if overlap.tensor_parallel and engine.sequence_length is None and not engine.packed:
        return (
            "overlap.tensor_parallel is true, but sequence_length is null, and Transformer Engine's buffers have one "
            "size; give sequence_length, or set overlap.tensor_parallel: false"
        )
    if overlap.pipeline and layout.virtual_pipeline is None:
        return (
            "overlap.pipeline is true, but parallelism.virtual_pipeline is null, and megatron-core overlaps stages "
            "only in the interleaved schedule; give virtual_pipeline, or leave overlap.pipeline out"
        )
    if layout.virtual_pipeline is not None and layout.pipeline == 2 and not engine.overlap_pipeline:
        return (
            f"overlap.pipeline is false, but parallelism.virtual_pipeline = {layout.virtual_pipeline} with pipeline 2, "
            "and megatron-core mixes up what two GPUs send each other at once; leave overlap.pipeline out, or raise "
            "parallelism.pipeline"
        )
    return None


def _objective(engine: MegatronEngine) -> str | None:
    """NeMo's DistillationGPTModel, Bridge's DistillationProvider: the teacher is a part of the student's module."""
    if engine.distillation is None:
        return None
    layout = engine.parallelism
    if layout.virtual_pipeline is not None:
        return (
            f"distillation is given, and parallelism.virtual_pipeline = {layout.virtual_pipeline}, but ModelOpt's "
            "distillation has no interleaved schedule; leave virtual_pipeline out"
        )
    if engine.lora is not None:
        return "distillation and lora are both given, but the teacher would get adapters as well; leave one of them out"
    return None


def _profile(engine: MegatronEngine) -> str | None:
    profile = engine.profile
    if profile is None or profile.first_step <= profile.last_step < engine.steps:
        return None
    return (
        f"profile.first_step = {profile.first_step} and profile.last_step = {profile.last_step} are no steps of "
        f"0 to {engine.steps - 1}; take some of these, the first one first"
    )
