"""What each stage of a recipe takes of a GPU, of CPU memory and of the disk, as far as that is known before it runs.

`reasonforge plan --site` shows it, and slurm's preflight refuses what does not fit. The model of a stage is the one
that `base_model` reads from disk, followed along the stages' inputs; of a model trained from scratch nothing is said,
for it is tiny.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from checkpoints_conversion.spec import ModelSpec, read_spec
from data_prep.generation import HFEngine
from data_prep.generation.sampling import Sampling
from reasonforge.errors import RequestError
from recipes.engines.trl_grpo import TRLGRPO
from recipes.engines.trl_sft import TRLSFT
from recipes.preflight.memory import CONTEXT, Conversion, Training, conversion_needs, training_memory
from recipes.preflight.parallelism import Batch, Parallelism
from recipes.preflight.serving import cache_per_token
from recipes.preflight.shape import parameters
from recipes.preflight.table import GIB, MemoryTable, Row
from recipes.recipe import Recipe
from recipes.stages.base_model import BaseModelStage, CheckpointSource
from recipes.stages.distill import DistillStage
from recipes.stages.evaluate import EvaluateStage
from recipes.stages.export_checkpoint import ExportCheckpointStage
from recipes.stages.generate import GenerateStage
from recipes.stages.grpo import GRPOStage
from recipes.stages.import_checkpoint import ImportCheckpointStage
from recipes.stages.tokenize import TokenizeStage

SAMPLER_BYTES = 22
"""Of each entry of the vocabulary and sequence: logits in 16 and 32 bits, sorted with their indices for top-p."""

_ELEMENT = {"float32": 4, None: 2, "bfloat16": 2, "float16": 2, "auto": 2}


@dataclass(frozen=True)
class Need:
    """What a stage takes."""

    gpu: MemoryTable | None = None
    """Of its GPU; None where it has none, or the site does not say how much memory one has."""
    remedy: str = ""
    """What would make it fit, where it does not."""
    conversion: Conversion | None = None
    """Of CPU memory and disk, where it converts a model."""


def needs(recipe: Recipe, gpu_memory_gb: Mapping[str, float | None]) -> dict[str, Need]:
    """What the stages take, by name, in the order they can run; stages of which nothing is known are left out.

    Args:
        gpu_memory_gb: GiB of a GPU where each stage runs; None, or no entry, where it has none or nobody knows.
    """
    models = _models(recipe)
    found = {}
    for name in recipe.order():
        capacity = gpu_memory_gb.get(name)
        need = _need(recipe, name, models, None if capacity is None else int(capacity * GIB))
        if need is not None:
            found[name] = need
    return found


def _models(recipe: Recipe) -> dict[str, ModelSpec]:
    """The shape of the model that each stage makes."""
    found: dict[str, ModelSpec] = {}
    for name in recipe.order():
        stage = recipe.stages[name]
        if isinstance(stage, BaseModelStage):
            if isinstance(stage.source, CheckpointSource):
                spec = _spec(stage.source)
                found |= {name: spec} if spec else {}
        elif isinstance(stage, DistillStage | GRPOStage | ImportCheckpointStage):
            found |= {name: found[stage.inputs.model]} if stage.inputs.model in found else {}
        elif isinstance(stage, ExportCheckpointStage) and stage.inputs.checkpoint in found:
            found[name] = found[stage.inputs.checkpoint]
    return found


def _spec(source: CheckpointSource) -> ModelSpec | None:
    """The shape of a model on disk; None of one that no map covers, which TRL may well train."""
    try:
        return read_spec(Path(source.path) / "config.json")
    except RequestError:
        return None


def _need(recipe: Recipe, name: str, models: Mapping[str, ModelSpec], capacity: int | None) -> Need | None:
    stage = recipe.stages[name]
    if isinstance(stage, ImportCheckpointStage | ExportCheckpointStage):
        if name not in models:
            return None
        multiple = (stage.pad_vocabulary or 128) if isinstance(stage, ImportCheckpointStage) else 128
        return Need(conversion=conversion_needs(models[name], _ELEMENT[stage.dtype], multiple))
    if capacity is None:
        return None
    if isinstance(stage, DistillStage) and name in models:
        tokens = recipe.stages[stage.inputs.tokens]
        length = tokens.max_tokens if isinstance(tokens, TokenizeStage) else models[name].positions
        return _sft(models[name], stage.engine, length, capacity)
    if isinstance(stage, GRPOStage) and name in models:
        return Need(_grpo(models[name], stage.engine, capacity), "lower engine.micro_batch_size or engine.prompts")
    if isinstance(stage, EvaluateStage | GenerateStage) and isinstance(stage.engine, HFEngine):
        teacher = stage.inputs.model if isinstance(stage, EvaluateStage) else stage.inputs.teacher
        if teacher in models:
            return _sampling(models[str(teacher)], stage.engine, stage.sampling, capacity)
    return None


def _sft(model: ModelSpec, engine: TRLSFT, length: int, capacity: int) -> Need:
    """The training as it is, and the mildest change that makes it fit."""
    asked = engine.micro_batch_size or engine.batch_size
    table = _training(model, engine.gradient_checkpointing, asked, engine.batch_size, length, capacity)
    for recompute in dict.fromkeys((engine.gradient_checkpointing, True)):
        for micro in (size for size in range(asked, 0, -1) if engine.batch_size % size == 0):
            if _training(model, recompute, micro, engine.batch_size, length, capacity).fits:
                more = ", gradient_checkpointing: true" if recompute else ""
                return Need(table, f"it would fit with engine: {{micro_batch_size: {micro}{more}}}")
    return Need(table, "it takes a GPU with more memory, a smaller model or a lower max_tokens")


def _training(model: ModelSpec, recompute: bool, micro: int, batch: int, length: int, capacity: int) -> MemoryTable:
    """transformers' trainer on one GPU: fp32 weights and Adam under bf16 autocast, which keeps bf16 copies of the
    weights: 18 bytes a parameter, as in Megatron's bf16."""
    training = Training(recompute="full" if recompute else "none", distributed_optimizer=False)
    sequences = Batch(sequence_length=length, micro=micro, global_=batch)
    return training_memory(model, Parallelism(), sequences, 1, "bf16", training, capacity)


def _grpo(model: ModelSpec, engine: TRLGRPO, capacity: int) -> MemoryTable:
    """Training or generation, whichever takes more beside weights and optimizer; and the reference model's weights."""
    completions = engine.prompts * engine.group_size
    share = completions // engine.updates
    table = _training(
        model,
        engine.gradient_checkpointing,
        engine.micro_batch_size or share,
        share,
        engine.max_completion_tokens,
        capacity,
    )
    step = ("activations", "logits and loss", "layer at work", "fragmentation (allowance)")
    cache = completions * engine.max_completion_tokens * cache_per_token(model)
    rows = list(table.rows)
    if cache > sum(table.bytes_of(name) for name in step):
        rows = [row for row in rows if row.component not in step] + [Row("key-value cache", cache)]
    if engine.kl_coefficient:
        rows.append(Row("reference model", 4 * parameters(model)))
    return MemoryTable(tuple(rows), capacity, table.where)


def _sampling(model: ModelSpec, engine: HFEngine, sampling: Sampling, capacity: int) -> Need:
    """transformers' generate: the weights, a cache that grows to the longest answer, and the sampler's logits."""
    element = _ELEMENT[engine.dtype]

    def table(sequences: int) -> MemoryTable:
        length = min(sampling.max_tokens, model.positions)
        return MemoryTable(
            (
                Row("weights", parameters(model) * element),
                Row("key-value cache", sequences * length * cache_per_token(model, cache_bytes=element)),
                Row("sampler", SAMPLER_BYTES * sequences * model.vocabulary),
                Row("CUDA and NCCL (allowance)", CONTEXT, fixed=True),
            ),
            capacity,
            "every GPU",
        )

    fitting = next((size for size in range(engine.batch_size, 0, -1) if table(size).fits), None)
    remedy = "it takes a GPU with more memory" if fitting is None else f"it would fit with engine.batch_size: {fitting}"
    return Need(table(engine.batch_size), remedy)
