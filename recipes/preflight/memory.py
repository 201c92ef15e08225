"""What a training takes of each GPU's memory, by component, from formulas alone; and what a conversion takes of CPU
memory and disk. slurm's plan and preflight show it; `suggest` ranks layouts by it.

The sources: Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models" (arXiv
2205.05198, here K22); Rajbhandari et al. 2019, "ZeRO" (arXiv 1910.02054); Narayanan et al. 2021 (arXiv 2104.04473);
Megatron-LM's megatron/training/theoretical_memory_usage.py. K22 counts a GPT with GELU, dropout and unfused attention;
here the layers are those of Llama and Qwen (RMSNorm, SwiGLU, no dropout, grouped queries), so each tensor that the
backward pass needs is counted anew. `python -m benchmarks.memory` compares the result with published figures.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from checkpoints_conversion.spec import ModelSpec
from reasonforge.config import Strict
from recipes.preflight.parallelism import Batch, Parallelism, Precision, Size, is_fp8
from recipes.preflight.shape import Held, held_by_stage, padded_rows, parameters
from recipes.preflight.table import GIB, MemoryTable, Row

CONTEXT = GIB
"""Bytes for the CUDA context, the loaded kernels and the workspaces of cuBLAS and Transformer Engine. An allowance."""

COMMUNICATOR = GIB // 4
"""Bytes of NCCL's buffers for each kind of parallelism that is used. An allowance."""

FRAGMENTATION = 0.05
"""Share of what comes and goes in a step (activations, logits, buffers) that the allocator loses between blocks. An
allowance: with expandable segments less, without them sometimes much more (Megatron-Bridge, pull request 3107)."""

CONVERSION_CPU = 64 * 2**20
"""Bytes of CPU memory that a conversion takes, whatever the model's size: measured by `benchmarks.conversion`."""


class Training(Strict):
    """What of a training decides its memory, besides model, layout, batch and precision."""

    recompute: Literal["none", "selective", "full"] = "selective"
    """What the backward pass computes again: nothing, the core of the attention, or whole layers
    (`recompute_granularity`). K22, section 5."""

    recompute_method: Literal["uniform", "block"] = "uniform"
    """With full: all layers, `recompute_layers` at a time, or only so many of each stage (`recompute_method`)."""

    recompute_layers: Size = 1
    """See `recompute_method` (`recompute_num_layers`)."""

    distributed_optimizer: bool = True
    """Whether the optimizer's state is shared out over data and context parallelism (`use_distributed_optimizer`).
    ZeRO stage 1."""

    gradient_bytes: Literal[2, 4] = 4
    """Bytes of a gradient's element: 4 is Megatron's default for bf16 (`grad_reduce_in_fp32`)."""

    fp8_weights: bool = False
    """Whether the weights are kept in FP8 only (`fp8_param`), beside the optimizer's fp32 copy."""

    fp8_cache: bool = True
    """Whether the weights' quantized layouts are kept between the micro-batches of a step, and not made anew
    (`disable_parameter_transpose_cache` false)."""

    fused_attention: bool = True
    """Whether the attention's scores are never stored, as in FlashAttention and Transformer Engine. Dao et al. 2022,
    arXiv 2205.14135."""

    lora_rank: Size | None = None
    """Rank of the adapters on every matrix of a layer; only they are trained. None: all weights are. Hu et al. 2021,
    arXiv 2106.09685."""


@dataclass(frozen=True)
class _Run:
    model: ModelSpec
    parallelism: Parallelism
    batch: Batch
    gpus: int
    precision: Precision
    training: Training

    @property
    def tokens(self) -> float:
        """Tokens of a micro-batch on one GPU, before sequence parallelism."""
        return self.batch.sequence_length * self.batch.micro / self.parallelism.context

    @property
    def element(self) -> int:
        """Bytes of an activation's element."""
        return 4 if self.precision == "fp32" else 2

    @property
    def saved_input(self) -> int:
        """Bytes of an element of what a linear layer keeps of its input: FP8 keeps the quantized one."""
        return 1 if is_fp8(self.precision) and self.training.lora_rank is None else self.element

    @property
    def shards(self) -> int:
        """GPUs that share what lies between the matrices."""
        return self.parallelism.tensor if self.parallelism.sequence_parallel else 1


def training_memory(
    model: ModelSpec,
    parallelism: Parallelism,
    batch: Batch,
    gpus: int,
    precision: Precision,
    training: Training,
    gpu_memory: int,
) -> MemoryTable:
    """The table of the GPU that holds most: of the first pipeline stage, or of another.

    Args:
        model: the model's shape.
        parallelism: how it is laid over the GPUs; it should have passed `layout.problems`.
        batch: the sequences of a step.
        gpus: GPUs of the whole job.
        precision: what the matrix products are computed in.
        training: recomputation, optimizer and so on.
        gpu_memory: bytes of a GPU's memory.
    """
    stages = range(parallelism.pipeline)
    tables = [stage_memory(model, parallelism, batch, gpus, precision, training, gpu_memory, it) for it in stages]
    return max(tables, key=lambda table: table.total)


def stage_memory(
    model: ModelSpec,
    parallelism: Parallelism,
    batch: Batch,
    gpus: int,
    precision: Precision,
    training: Training,
    gpu_memory: int,
    stage: int,
) -> MemoryTable:
    """The table of the GPUs of one pipeline stage; 0 is the first. See `training_memory`."""
    run = _Run(model, parallelism, batch, gpus, precision, training)
    held = held_by_stage(model, parallelism, stage)
    rows = [Row(name, round(size)) for name, size in _state(run, held)]
    step = [
        ("activations", run.tokens * _kept_per_token(run) * layers_in_flight(model, parallelism, batch, gpus, stage)),
        ("logits and loss", run.tokens * _logits_per_token(run) if stage == parallelism.pipeline - 1 else 0),
        ("layer at work", run.tokens * _working_per_token(run)),
    ]
    rows += [Row(name, round(size)) for name, size in step]
    kinds = (parallelism.tensor, parallelism.pipeline, parallelism.context, parallelism.expert)
    used = sum(size > 1 for size in (*kinds, gpus // parallelism.model_gpus))
    rows.append(Row("CUDA and NCCL (allowance)", CONTEXT + COMMUNICATOR * used, fixed=True))
    lost = FRAGMENTATION * sum(size for _, size in step)
    rows.append(Row("fragmentation (allowance)", round(lost), fixed=True))
    where = f"stage {stage + 1} of {parallelism.pipeline}" if parallelism.pipeline > 1 else "every GPU"
    return MemoryTable(tuple(rows), gpu_memory, where)


def _state(run: _Run, held: Held) -> Iterator[tuple[str, float]]:
    """Weights, gradients and the optimizer's state.

    Mixed precision holds 2 bytes of weight, 4 of gradient and 12 of Adam's fp32 weight and two moments for each
    parameter, fp32 4, 4 and 8 (ZeRO, section 3.1; Megatron counts 18 and 6 + 12/DP). The distributed optimizer shares
    Adam's part over DP × CP, that of experts over the copies of each expert. FP8 needs a weight in two layouts of a
    byte each, one for each direction; MXFP8 cannot turn the one into the other, so FP8 weights hold both there.
    """
    training, parallelism, fp32 = run.training, run.parallelism, run.precision == "fp32"
    linear = held.linear + held.experts
    quantized = linear if is_fp8(run.precision) else 0
    if training.fp8_weights:
        layouts = 2 if training.fp8_cache or run.precision == "mxfp8" else 1
        yield "weights", (held.total - quantized) * run.element + layouts * quantized
    else:
        yield "weights", held.total * run.element
        yield "FP8 copies of weights", 2 * quantized if training.fp8_cache else 0
    adapters = _adapters(run)
    dense, experts = (held.total - held.experts, held.experts) if adapters is None else (adapters, 0.0)
    if adapters is not None:
        yield "adapters", adapters * run.element
    yield "gradients", (dense + experts) * (4 if fp32 else training.gradient_bytes)
    shares = (1, 1)
    if training.distributed_optimizer:
        shares = (parallelism.data(run.gpus) * parallelism.context, parallelism.expert_data(run.gpus))
    yield "optimizer", (8 if fp32 else 12) * (dense / shares[0] + experts / shares[1])


def _adapters(run: _Run) -> float | None:
    """Parameters of a GPU's adapters: rank × (rows + columns) of each matrix; a layer's experts share one pair."""
    rank, model = run.training.lora_rank, run.model
    if rank is None:
        return None
    inner = model.expert_ffn if model.experts else model.ffn
    attention = 2 * model.hidden + 2 * model.query_rows + 2 * model.key_rows
    layers = model.layers / run.parallelism.pipeline
    return layers * rank * (attention + 2 * model.hidden + 3 * inner) / run.parallelism.tensor


def layers_in_flight(model: ModelSpec, parallelism: Parallelism, batch: Batch, gpus: int, stage: int) -> float:
    """Layers whose activations a GPU of a stage keeps at the peak, counting each micro-batch anew.

    1F1B keeps min(rounds, stages - stage) micro-batches of all its layers. The interleaved schedule has gone forward
    through 2(stages - stage - 1) + (chunks - 1)·stages + 1 chunks before its first backward (arXiv 2104.04473,
    section 2.2); on the first stage this is K22's factor 1 + (p - 1)/(p·m).
    """
    stages, chunks = parallelism.pipeline, parallelism.virtual_pipeline
    rounds = batch.rounds(parallelism.data(gpus))
    if chunks is None or stages == 1:
        return min(rounds, stages - stage) * model.layers / stages
    ahead = 2 * (stages - stage - 1) + (chunks - 1) * stages + 1
    return min(ahead, rounds * chunks) * model.layers / (stages * chunks)


def _kept_per_token(run: _Run) -> float:
    """Bytes that a layer keeps for the backward pass, for each token; with full recomputation the input only of those
    that are computed again, of several at a time the first one's. Layers differ with `block`: this is their mean."""
    training, chunks = run.training, run.parallelism.pipeline * (run.parallelism.virtual_pipeline or 1)
    if training.recompute != "full":
        return _layer_per_token(run, scores=training.recompute == "none")
    inputs = run.element * run.model.hidden / run.shards
    if training.recompute_method == "uniform":
        return inputs / training.recompute_layers
    share = min(training.recompute_layers * chunks / run.model.layers, 1)
    return share * inputs + (1 - share) * _layer_per_token(run, scores=True)


def _layer_per_token(run: _Run, scores: bool) -> float:
    """Bytes of all that a layer keeps without full recomputation, for each token (K22, section 4.1, for this layer).

    With h hidden, q and k rows, e bytes of an element, i bytes of a saved input (e, or 1 in FP8), and what sequence
    parallelism shares divided by its shards: two norms' inputs 2eh and outputs 2ih; query, key and value e(q + 2k) and
    the attention's output eq, with log-sum-exp 4 for each head, all over TP; then the feed-forward. Unfused attention
    adds 5/2·e for each head and position (K22's 5as²b).
    """
    model, tensor, e, i = run.model, run.parallelism.tensor, run.element, run.saved_input
    key_rows = max(model.key_rows / tensor, model.head_dim)
    hidden = model.hidden * (2 * e + i + (e if model.experts else i)) / run.shards
    attention = (e * 2 * model.query_rows + 4 * model.heads) / tensor + e * 2 * key_rows
    if i != e:
        attention += i * model.query_rows / tensor
    if scores and not run.training.fused_attention:
        attention += 2.5 * e * model.heads * run.batch.sequence_length / tensor
    gathered = 0.0
    if run.training.lora_rank is not None and run.shards > 1:
        gathered = 2 * e * model.hidden  # each adapter keeps its gathered input (Megatron-Bridge, pull request 4581)
    return hidden + attention + _feed_forward_per_token(run) + gathered


def _feed_forward_per_token(run: _Run) -> float:
    """Bytes that the feed-forward keeps, for each token: gate and up 2ef and their product if, over TP.

    With experts, each token's top-k copies go out; with tokens spread evenly a GPU gets k·ETP/SP for each token:
    the copies in ih and out eh, and gate, up and product over ETP; and the router's fp32 logits and probabilities.
    """
    model, layout, e, i = run.model, run.parallelism, run.element, run.saved_input
    if not model.experts:
        return (2 * e + i) * model.ffn / layout.tensor
    copies = model.experts_per_token * layout.expert_shards / run.shards
    inner = (2 * e + i) * model.expert_ffn / layout.expert_shards
    return copies * ((i + e) * model.hidden + inner) + 2 * 4 * model.experts / run.shards


def _working_per_token(run: _Run) -> float:
    """Bytes of the layer that is being computed, for each token: the gradients of its widest part and its gathered
    input, and with full recomputation all that a layer would keep."""
    model, layout, e = run.model, run.parallelism, run.element
    widest = 3 * model.ffn / layout.tensor
    if model.experts:
        copies = model.experts_per_token * layout.expert_shards / run.shards
        widest = copies * (3 * model.expert_ffn / layout.expert_shards + model.hidden)
    again = 0.0
    if run.training.recompute == "full":
        at_once = run.training.recompute_layers if run.training.recompute_method == "uniform" else 1
        again = at_once * _layer_per_token(run, scores=True)
    return e * (widest + 2 * model.hidden) + again


def _logits_per_token(run: _Run) -> float:
    """Bytes of output layer and loss, for each token: logits (later their gradient) e·V and the fp32 softmax 4V over
    TP (megatron-core's vocab_parallel_cross_entropy), and the last norm's input and output."""
    rows = padded_rows(run.model, run.parallelism) / run.parallelism.tensor
    return (run.element + 4) * rows + 2 * run.element * run.model.hidden / run.shards


@dataclass(frozen=True)
class Conversion:
    """What a conversion takes, in bytes."""

    cpu: int
    """CPU memory: constant, for tensors pass through the kernel."""
    result: int
    """Disk for the result, which is written beside its place and renamed: nothing is there twice."""
    with_source: int
    """Disk for source and result together."""


def conversion_needs(model: ModelSpec, element: int = 2, vocabulary_multiple: int = 128) -> Conversion:
    """What the conversion of a model between Hugging Face and Megatron takes; `element` is bytes of an element.

    The Megatron side pads the vocabulary to a multiple; the larger side is counted as the result.
    """
    plain = parameters(model)
    padding = model.padded_vocabulary(vocabulary_multiple) - model.vocabulary
    padded = plain + padding * model.hidden * (1 if model.tied else 2)
    return Conversion(CONVERSION_CPU, padded * element, (plain + padded) * element)
