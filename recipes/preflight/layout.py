"""Whether a layout divides a model: every rule that megatron-core would assert on a GPU, checked without one.

slurm's preflight and the engines call `problems`, which tells all that is wrong at once. A test builds 1,000 random
layouts with megatron-core itself and compares. `BEYOND_CONSTRUCTION` names the rules that megatron-core only checks
while it runs, or not at all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from checkpoints_conversion.spec import ModelSpec
from reasonforge.errors import RequestError
from recipes.preflight.parallelism import Batch, Parallelism, Precision, is_fp8

Core = Literal["0.15", "0.16"]
"""The megatron-core that trains: NeMo 2.7 has 0.15, Megatron-Bridge 0.3 has 0.16, which also takes more tensor-parallel
GPUs than query groups."""

Severity = Literal["error", "warning", "note"]

ALIGNMENT: dict[Precision, int] = {"fp8-delayed": 16, "fp8-current": 16, "fp8-blockwise": 16, "mxfp8": 32}
"""What each dimension of an FP8 matrix product must be a multiple of: 16 for the tensor cores (Transformer Engine
issues 1422 and 317), 32 for MXFP8's blocks (mxfp8_tensor.py); megatron-core's get_fp8_align_size says the same."""

BLOCK = 128
"""Rows of a block of Float8BlockScaling; fewer tokens than whole blocks are gathered in bf16 (is_quantizable)."""

BEYOND_CONSTRUCTION = {
    "sequence_by_context": "get_batch_on_this_cp_rank, at the first step",
    "sequence_by_tensor": "scatter_to_sequence_parallel_region, at the first step",
    "batch": "the micro-batch calculator, after the model is built",
    "interleaved_rounds": "the interleaved schedule, at the first step",
    "experts_sequence_parallel": "MoELayer.forward, at the first step",
    "experts_per_token": "the router's top-k, at the first step",
    "fp8_dimensions": "Transformer Engine, at the first step",
    "fp8_tokens": "Transformer Engine, at the first step",
    "context_needs_te": "construction with the local layers, which have no context parallelism",
    "sequence_parallel_needs_te": "construction with the local layers, whose RMSNorm has no sequence parallelism",
    "fp8_needs_te": "only Transformer Engine has FP8 layers; the local ones would compute in bf16 and not say so",
}
"""The errors that megatron-core does not raise while it builds a model with Transformer Engine, and who would."""


@dataclass(frozen=True)
class Problem:
    """One thing about a layout. An error would stop the run, a warning slow it, a note is only to be known."""

    rule: str
    keys: tuple[str, ...]
    """The keys that it is about, as in a recipe: `parallelism.tensor`; `model.…` for the model's own sizes."""
    found: str
    why: str
    remedy: str
    severity: Severity = "error"

    def __str__(self) -> str:
        return f"{', '.join(self.keys)}: found {self.found}; {self.why}" + (f"; {self.remedy}" if self.remedy else "")

    def error(self, where: str) -> RequestError:
        """As the one-line error of a recipe."""
        return RequestError(f"{where}: {', '.join(self.keys)}", f"found {self.found}; {self.why}", self.remedy)


@dataclass(frozen=True)
class Case:
    """A layout with all that it is judged by."""

    model: ModelSpec
    parallelism: Parallelism
    batch: Batch
    gpus: int
    gpus_per_node: int
    precision: Precision
    core: Core
    transformer_engine: bool


def problems(
    model: ModelSpec,
    parallelism: Parallelism,
    batch: Batch,
    gpus: int,
    gpus_per_node: int,
    precision: Precision,
    *,
    core: Core = "0.15",
    transformer_engine: bool = True,
) -> list[Problem]:
    """All that is wrong with a layout, errors first; empty where nothing is.

    Args:
        model: the model's shape.
        parallelism: how it is laid over the GPUs.
        batch: the sequences of a step.
        gpus: GPUs of the whole job.
        gpus_per_node: GPUs that NVLink joins.
        precision: what the matrix products are computed in.
        core: the megatron-core that trains.
        transformer_engine: whether it is there; without it there is neither context parallelism nor FP8.
    """
    case = Case(model, parallelism, batch, gpus, gpus_per_node, precision, core, transformer_engine)
    rules = (_gpus, _attention, _layers, _feed_forward, _experts, _sequence, _batch, _transformer_engine, _fp8, _advice)
    found = [problem for rule in rules for problem in rule(case)]
    order: tuple[Severity, ...] = ("error", "warning", "note")
    return sorted(found, key=lambda problem: order.index(problem.severity))


def errors(found: list[Problem]) -> list[Problem]:
    """Those that would stop the run."""
    return [problem for problem in found if problem.severity == "error"]


def _gpus(case: Case) -> Iterator[Problem]:
    """parallel_state.initialize_model_parallel: both grids must tile the world."""
    layout, gpus = case.parallelism, case.gpus
    if gpus % layout.model_gpus:
        yield Problem(
            "gpus",
            ("parallelism.tensor", "parallelism.pipeline", "parallelism.context"),
            f"{layout.tensor} × {layout.pipeline} × {layout.context} = {layout.model_gpus} on {gpus} GPUs",
            "the GPUs must hold a whole number of copies of the model",
            f"take {_multiples(layout.model_gpus, gpus)} GPUs, or sizes whose product divides {gpus}",
        )
    grid = layout.expert_shards * layout.expert * layout.pipeline
    if gpus % grid and (case.model.experts or layout.expert_tensor is not None or layout.expert > 1):
        yield Problem(
            "expert_gpus",
            ("parallelism.expert", "parallelism.expert_tensor", "parallelism.pipeline"),
            f"{layout.expert} × {layout.expert_shards} × {layout.pipeline} = {grid} on {gpus} GPUs",
            "the GPUs must hold a whole number of copies of the experts",
            f"take {_multiples(grid, gpus)} GPUs, or sizes whose product divides {gpus}",
        )


def _attention(case: Case) -> Iterator[Problem]:
    """TransformerConfig.__post_init__ and Attention.__init__."""
    model, tensor = case.model, case.parallelism.tensor
    key = "parallelism.tensor"
    if model.heads % tensor:
        yield Problem(
            "heads",
            (key, "model.heads"),
            f"{tensor} for {model.heads} attention heads",
            "each GPU takes whole heads",
            f"take {_divisors(model.heads, case.gpus_per_node, tensor)}",
        )
    fewer = case.core == "0.16" and tensor % model.groups == 0
    if model.groups % tensor and not fewer:
        more = f" or, with megatron-core 0.16, a multiple of {model.groups}" if case.core == "0.15" else ""
        yield Problem(
            "groups",
            (key, "model.groups"),
            f"{tensor} for {model.groups} KV heads",
            f"megatron-core {case.core} gives each GPU whole KV heads",
            f"take {_divisors(model.groups, case.gpus_per_node, tensor)}{more}",
        )
    elif (model.query_rows + 2 * model.key_rows) % tensor:
        yield Problem(
            "qkv_rows",
            (key, "model.head_dim"),
            f"{tensor} for {model.query_rows + 2 * model.key_rows} rows of query, key and value",
            "they are one matrix whose rows are shared evenly",
            f"take {_divisors(model.groups, case.gpus_per_node, tensor)}",
        )


def _layers(case: Case) -> Iterator[Problem]:
    """parallel_state, and transformer_block's get_num_layers_to_build."""
    layout, layers = case.parallelism, case.model.layers
    if layers % layout.pipeline:
        yield Problem(
            "layers",
            ("parallelism.pipeline", "model.layers"),
            f"{layout.pipeline} stages for {layers} layers",
            "each stage takes as many layers as the others",
            f"take {_divisors(layers, case.gpus, layout.pipeline)}",
        )
    chunks = layout.virtual_pipeline
    if chunks is None:
        return
    key = ("parallelism.virtual_pipeline", "parallelism.pipeline")
    if layout.pipeline == 1:
        yield Problem(
            "virtual_without_pipeline",
            key,
            f"{chunks} chunks on one stage",
            "the interleaved schedule needs more than one stage",
            "leave virtual_pipeline out, or raise pipeline",
        )
    each = layers // layout.pipeline
    if layers % layout.pipeline == 0 and each % chunks:
        yield Problem(
            "chunks",
            key,
            f"{chunks} chunks for the {each} layers of a stage",
            "each chunk takes as many layers as the others",
            f"take {_divisors(each, each, chunks)}",
        )


def _feed_forward(case: Case) -> Iterator[Problem]:
    """ColumnParallelLinear and RowParallelLinear: `divide` the inner size."""
    model, layout = case.model, case.parallelism
    if not model.experts and model.ffn % layout.tensor:
        yield Problem(
            "ffn",
            ("parallelism.tensor", "model.ffn"),
            f"{layout.tensor} for {model.ffn} inner columns",
            "they are shared evenly",
            f"take {_divisors(model.ffn, case.gpus_per_node, layout.tensor)}",
        )
    if model.experts and model.expert_ffn % layout.expert_shards:
        yield Problem(
            "expert_ffn",
            ("parallelism.expert_tensor", "model.expert_ffn"),
            f"{layout.expert_shards} for {model.expert_ffn} inner columns of an expert",
            "they are shared evenly",
            f"take {_divisors(model.expert_ffn, case.gpus_per_node, layout.expert_shards)}",
        )


def _experts(case: Case) -> Iterator[Problem]:
    """TransformerConfig, BaseMoELayer.__init__, MoELayer.forward and the router."""
    model, layout = case.model, case.parallelism
    if not model.experts:
        if layout.expert > 1:
            yield Problem(
                "experts_needed",
                ("parallelism.expert",),
                str(layout.expert),
                f"a dense {model.model_type} model has no experts to share",
                "leave it at 1",
            )
        return
    if model.experts % layout.expert:
        yield Problem(
            "experts",
            ("parallelism.expert", "model.experts"),
            f"{layout.expert} for {model.experts} experts",
            "each GPU takes whole experts, as many as the others",
            f"take {_divisors(model.experts, case.gpus, layout.expert)}",
        )
    if layout.tensor > 1 and not layout.sequence_parallel:
        yield Problem(
            "experts_sequence_parallel",
            ("parallelism.sequence_parallel", "parallelism.tensor"),
            f"false with tensor {layout.tensor}",
            "megatron-core trains experts under tensor parallelism only with sequence parallelism",
            "set it to true",
        )
    if model.experts_per_token > model.experts:
        yield Problem(
            "experts_per_token",
            ("model.experts_per_token",),
            f"{model.experts_per_token} of {model.experts} experts",
            "a token cannot go to more experts than there are",
            "the model's configuration is wrong",
        )


def _sequence(case: Case) -> Iterator[Problem]:
    """ModelParallelConfig, get_batch_on_this_cp_rank and scatter_to_sequence_parallel_region."""
    layout, length = case.parallelism, case.batch.sequence_length
    if layout.sequence_parallel and layout.tensor == 1:
        yield Problem(
            "sequence_parallel_without_tensor",
            ("parallelism.sequence_parallel", "parallelism.tensor"),
            "true with tensor 1",
            "it shares the sequence among the tensor-parallel GPUs, and there is one",
            "set it to false, or raise tensor",
        )
    context = layout.context
    if context > 1 and length % (2 * context):
        yield Problem(
            "sequence_by_context",
            ("batch.sequence_length", "parallelism.context"),
            f"{length} tokens over {context} GPUs",
            f"each GPU takes two of {2 * context} equal pieces, one from each end, so that the causal work is even",
            f"take {_multiples(_sequence_step(layout), length)} tokens",
        )
    elif layout.sequence_parallel and (length // context) % layout.tensor:
        yield Problem(
            "sequence_by_tensor",
            ("batch.sequence_length", "parallelism.tensor"),
            f"{length // context} tokens over {layout.tensor} GPUs",
            "sequence parallelism shares them evenly",
            f"take {_multiples(_sequence_step(layout), length)} tokens",
        )


def _sequence_step(layout: Parallelism) -> int:
    pieces = 2 * layout.context if layout.context > 1 else 1
    return pieces * (layout.tensor if layout.sequence_parallel else 1)


def _batch(case: Case) -> Iterator[Problem]:
    """ConstantNumMicroBatchesCalculator and forward_backward_pipelining_with_interleaving."""
    layout, batch = case.parallelism, case.batch
    if case.gpus % layout.model_gpus:
        return  # `_gpus` has said it, and the copies are not known
    copies = layout.data(case.gpus)
    at_once = batch.micro * copies
    if batch.global_ % at_once:
        yield Problem(
            "batch",
            ("batch.global_", "batch.micro"),
            f"{batch.global_} sequences for {copies} copies of the model, {batch.micro} at a time",
            f"a step must be a whole number of rounds of {batch.micro} × {copies} = {at_once}",
            f"take {_multiples(at_once, batch.global_)}",
        )
        return
    rounds, stages = batch.rounds(copies), layout.pipeline
    if layout.virtual_pipeline is not None and stages > 1 and rounds % stages:
        yield Problem(
            "interleaved_rounds",
            ("batch.global_", "parallelism.pipeline", "parallelism.virtual_pipeline"),
            f"{rounds} micro-batches for each copy, {stages} stages",
            "the interleaved schedule takes micro-batches in groups of as many as there are stages",
            f"take {_multiples(at_once * stages, batch.global_)}, or leave virtual_pipeline out",
        )
    elif rounds < stages:
        yield Problem(
            "idle_stages",
            ("batch.global_", "parallelism.pipeline"),
            f"{rounds} micro-batches for each copy, {stages} stages",
            f"a stage waits for at least {stages - rounds} of {stages} turns",
            f"take {at_once * stages} or more",
            "warning",
        )


def _transformer_engine(case: Case) -> Iterator[Problem]:
    """DotProductAttention and WrappedTorchNorm: only Transformer Engine's layers take a shared sequence."""
    if case.transformer_engine:
        return
    if case.parallelism.context > 1:
        yield Problem(
            "context_needs_te",
            ("parallelism.context",),
            str(case.parallelism.context),
            "only Transformer Engine's attention has context parallelism, and it is not there",
            "leave it at 1, or use an image with Transformer Engine",
        )
    if case.parallelism.sequence_parallel:
        yield Problem(
            "sequence_parallel_needs_te",
            ("parallelism.sequence_parallel",),
            "true",
            "only Transformer Engine's RMSNorm has sequence parallelism, and it is not there",
            "set it to false, or use an image with Transformer Engine",
        )
    if is_fp8(case.precision):
        yield Problem(
            "fp8_needs_te",
            ("precision",),
            case.precision,
            "only Transformer Engine computes in FP8, and it is not there",
            "take bf16, or an image with Transformer Engine",
        )


def _fp8(case: Case) -> Iterator[Problem]:
    """The tensor cores' alignment of every FP8 matrix product: weights' rows and columns, and tokens."""
    if not is_fp8(case.precision):
        return
    model, layout, step = case.model, case.parallelism, ALIGNMENT[case.precision]
    tensor, shards = layout.tensor, layout.expert_shards
    sizes = {
        "model.hidden": (model.hidden, 1),
        "model.head_dim (query, key and value rows)": (model.query_rows + 2 * model.key_rows, tensor),
        "model.heads (query rows)": (model.query_rows, tensor),
        "model.expert_ffn" if model.experts else "model.ffn": (
            (model.expert_ffn, shards) if model.experts else (model.ffn, tensor)
        ),
    }
    for key, (size, parts) in sizes.items():
        if size % parts == 0 and (size // parts) % step:
            yield Problem(
                "fp8_dimensions",
                (key, "parallelism.tensor", "precision"),
                f"{size} over {parts} = {size // parts}",
                f"{case.precision} multiplies in multiples of {step}",
                "take less tensor parallelism, or bf16",
            )
    parts = layout.context * (tensor if layout.sequence_parallel else 1)
    tokens = case.batch.sequence_length * case.batch.micro
    wanted = BLOCK if case.precision == "fp8-blockwise" else step
    if tokens % parts == 0 and (tokens // parts) % wanted:
        yield Problem(
            "fp8_tokens" if (tokens // parts) % step else "fp8_blocks",
            ("batch.sequence_length", "batch.micro", "precision"),
            f"{tokens // parts} tokens on each GPU",
            f"{case.precision} takes them in multiples of {wanted}",
            f"take a sequence_length of {_multiples(wanted * parts, case.batch.sequence_length)}",
            "error" if (tokens // parts) % step else "warning",
        )


def _advice(case: Case) -> Iterator[Problem]:
    """What runs, but is better known."""
    model, layout, node = case.model, case.parallelism, case.gpus_per_node
    if layout.tensor > node or node % layout.tensor:
        yield Problem(
            "tensor_beyond_node",
            ("parallelism.tensor",),
            f"{layout.tensor} with {node} GPUs in a node",
            "its traffic would leave NVLink in every layer",
            f"take {_divisors(node, node, layout.tensor)}",
            "warning",
        )
    if case.batch.sequence_length > model.positions:
        yield Problem(
            "positions",
            ("batch.sequence_length", "model.positions"),
            f"{case.batch.sequence_length} tokens for a model of {model.positions} positions",
            "it has not seen such positions",
            f"take {model.positions} or less, or scale its rope",
            "warning",
        )
    step = 128 * layout.tensor
    if model.vocabulary % step:
        yield Problem(
            "vocabulary",
            ("parallelism.tensor", "model.vocabulary"),
            f"{model.vocabulary} tokens",
            f"it is padded to {model.padded_vocabulary(step)}, a multiple of 128 × {layout.tensor}",
            "",
            "note",
        )


def _multiples(step: int, near: int) -> str:
    """The multiples of a step below and above a number."""
    below, above = near // step * step, (near // step + 1) * step
    return f"{below} or {above}" if below else str(above)


def _divisors(number: int, limit: int, near: int = 1) -> str:
    """The divisors of a number up to a limit; the six nearest to a value."""
    every = [part for part in range(1, min(number, limit) + 1) if number % part == 0]
    found = [str(part) for part in sorted(sorted(every, key=lambda part: (abs(part - near), part))[:6])]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} or {found[-1]}"
