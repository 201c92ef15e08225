"""The nearest layouts that would work, for the refusal of one that does not. slurm's preflight shows them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from checkpoints_conversion.spec import ModelSpec
from recipes.preflight.layout import ALIGNMENT, Core, errors, problems
from recipes.preflight.memory import Training, training_memory
from recipes.preflight.parallelism import Batch, Parallelism, Precision
from recipes.preflight.table import MemoryTable

LOOKED_AT = 64
"""How many of the nearest sound layouts are weighed."""


@dataclass(frozen=True)
class Suggestion:
    """A layout that would work, and what it changes."""

    parallelism: Parallelism
    batch: Batch
    training: Training
    table: MemoryTable
    changes: tuple[str, ...]
    """`parallelism.tensor: 8 → 4`; empty where what was asked for would work."""


def suggest(
    model: ModelSpec,
    parallelism: Parallelism,
    batch: Batch,
    gpus: int,
    gpus_per_node: int,
    precision: Precision,
    training: Training,
    gpu_memory: int,
    *,
    core: Core = "0.15",
    transformer_engine: bool = True,
    limit: int = 3,
) -> list[Suggestion]:
    """The nearest layouts on the same GPUs that have no error and fit; empty where none does. Nearest first, but those
    that fit only by the estimate's uncertainty come last.

    Near is few and small changes: the distance adds up how often each size is doubled or halved, a changed batch or
    sequence weighs more, and full recomputation is taken where nothing else fits. See `layout.problems` for the
    arguments and `memory.training_memory` for the last two.
    """
    asked = (parallelism, batch)
    nearest: list[tuple[float, Parallelism, Batch]] = []
    for layout in _layouts(model, parallelism, gpus, gpus_per_node, transformer_engine):
        fitted = _fit_batch(layout, batch, gpus, precision)
        nearest.append((_distance(asked, (layout, fitted)), layout, fitted))
    nearest.sort(key=lambda item: (item[0], item[1].model_dump_json()))
    sound: list[tuple[Parallelism, Batch]] = []
    for _, layout, fitted in nearest:
        found = problems(
            model, layout, fitted, gpus, gpus_per_node, precision, core=core, transformer_engine=transformer_engine
        )
        if not errors(found):
            sound.append((layout, fitted))
        if len(sound) == LOOKED_AT:
            break
    for choice in dict.fromkeys((training, training.model_copy(update={"recompute": "full"}))):
        fitting: list[Suggestion] = []
        for layout, fitted in sound:
            table = training_memory(model, layout, fitted, gpus, precision, choice, gpu_memory)
            if table.fits:
                changes = _changes((*asked, training), (layout, fitted, choice))
                fitting.append(Suggestion(layout, fitted, choice, table, changes))
        if fitting:
            return sorted(fitting, key=lambda suggestion: suggestion.table.tight)[:limit]
    return []


def _layouts(
    model: ModelSpec, asked: Parallelism, gpus: int, gpus_per_node: int, transformer_engine: bool
) -> Iterator[Parallelism]:
    """Every layout whose sizes divide what they share out; `problems` decides."""
    node = min(gpus, gpus_per_node)
    tensors = {*_divisors(math.gcd(model.heads, node)), asked.tensor}
    pipelines = {size for size in _divisors(model.layers) if size <= gpus}
    contexts = {1, asked.context, *(2**power for power in range(1, 6))} if transformer_engine else {1}
    experts = {size for size in _divisors(model.experts) if size <= gpus} if model.experts else {1}
    inner = {None, 1, asked.expert_tensor} if model.experts else {asked.expert_tensor, None}
    for tensor, pipeline, context in product(sorted(tensors), sorted(pipelines), sorted(contexts)):
        if gpus % (tensor * pipeline * context):
            continue
        chunks = {None, asked.virtual_pipeline, 2} if pipeline > 1 else {None}
        shared = {transformer_engine or asked.sequence_parallel, asked.sequence_parallel} if tensor > 1 else {False}
        for chunk, expert, split, sequence in product(chunks, sorted(experts), inner, sorted(shared)):
            yield Parallelism(
                tensor=tensor,
                pipeline=pipeline,
                virtual_pipeline=chunk,
                context=context,
                expert=expert,
                expert_tensor=split,
                sequence_parallel=sequence,
            )


def _fit_batch(layout: Parallelism, batch: Batch, gpus: int, precision: Precision) -> Batch:
    """The batch, with the sequence rounded up and the global batch rounded to the nearest that the layout takes."""
    parts = layout.context * (layout.tensor if layout.sequence_parallel else 1)
    step = parts * (2 if layout.context > 1 else 1)
    aligned = ALIGNMENT.get(precision, 1)
    step = math.lcm(step, aligned * parts // math.gcd(aligned * parts, batch.micro))
    length = math.ceil(batch.sequence_length / step) * step
    group = batch.micro * layout.data(gpus) * (layout.pipeline if layout.virtual_pipeline else 1)
    rounded = max(round(batch.global_ / group), 1) * group
    return batch.model_copy(update={"sequence_length": length, "global_": rounded})


def _distance(asked: tuple[Parallelism, Batch], found: tuple[Parallelism, Batch]) -> float:
    """How far two layouts are apart; 0 where they are the same."""
    (before, batch), (after, fitted) = asked, found
    doublings = [
        abs(math.log2(getattr(after, key) / getattr(before, key)))
        for key in ("tensor", "pipeline", "context", "expert", "expert_shards")
    ]
    chunks = abs(math.log2((after.virtual_pipeline or 1) / (before.virtual_pipeline or 1)))
    chunks += (after.virtual_pipeline is None) != (before.virtual_pipeline is None)
    named = 0.1 * (after.expert_tensor != before.expert_tensor)
    shared = 0.5 * (after.sequence_parallel != before.sequence_parallel)
    sequences = 8 * abs(math.log2(fitted.global_ / batch.global_)) + 2 * (fitted.global_ != batch.global_)
    length = 4 * abs(math.log2(fitted.sequence_length / batch.sequence_length))
    return sum(doublings) + 0.5 * chunks + named + shared + sequences + length


def _changes(asked: tuple[Parallelism, Batch, Training], found: tuple[Parallelism, Batch, Training]) -> tuple[str, ...]:
    """Each key that differs, with both values."""
    lines: list[str] = []
    for name, before, after in zip(("parallelism", "batch", "training"), asked, found, strict=True):
        for key, value in before.model_dump().items():
            other = getattr(after, key)
            if other != value:
                lines.append(f"{name}.{key}: {value} → {other}")
    return tuple(lines)


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]
