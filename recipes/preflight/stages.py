"""What each stage of a recipe takes of a GPU, of CPU memory and of the disk, as far as that is known before it runs.

`reasonforge plan --site` shows it, and slurm's preflight refuses what does not fit. The model of a stage is the one
that `base_model` reads from disk, followed along the stages' inputs; of a model trained from scratch nothing is said,
for it is tiny.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from checkpoints_conversion.directories import DIRECTORIES
from checkpoints_conversion.spec import ModelSpec, read_spec
from data_prep.generation import HFEngine, VLLMEngine
from data_prep.generation.sampling import Sampling
from reasonforge.errors import RequestError
from recipes.engines.megatron.options import MegatronEngine
from recipes.engines.trl_grpo import TRLGRPO
from recipes.engines.trl_sft import TRLSFT
from recipes.preflight import megatron
from recipes.preflight.layout import Problem, errors
from recipes.preflight.memory import CONTEXT, Conversion, Training, conversion_needs, training_memory
from recipes.preflight.parallelism import Batch, Parallelism
from recipes.preflight.serving import cache_per_token, serving_memory
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
    """What would make it fit, or the layout work, where it does not."""
    problems: tuple[Problem, ...] = ()
    """What is wrong with how the model is laid over the GPUs, errors first."""
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
                spec = _spec(Path(stage.source.path))
                found |= {name: spec} if spec else {}
        elif isinstance(stage, DistillStage | GRPOStage | ImportCheckpointStage):
            found |= {name: found[stage.inputs.model]} if stage.inputs.model in found else {}
        elif isinstance(stage, ExportCheckpointStage) and stage.inputs.checkpoint in found:
            found[name] = found[stage.inputs.checkpoint]
    return found


def _spec(directory: Path) -> ModelSpec | None:
    """The shape of a model on disk; None of one that no map covers, which TRL may well train."""
    try:
        return read_spec(directory / "config.json")
    except RequestError:
        return None


def _need(recipe: Recipe, name: str, models: Mapping[str, ModelSpec], capacity: int | None) -> Need | None:
    stage = recipe.stages[name]
    if isinstance(stage, ImportCheckpointStage | ExportCheckpointStage):
        if name not in models:
            return None
        usual = DIRECTORIES[stage.directory].vocabulary_multiple if isinstance(stage, ImportCheckpointStage) else 128
        multiple = getattr(stage, "pad_vocabulary", None) or usual
        return Need(conversion=conversion_needs(models[name], _ELEMENT[stage.dtype], multiple))
    if isinstance(stage, DistillStage) and name in models:
        tokens = recipe.stages[stage.inputs.tokens]
        length = tokens.max_tokens if isinstance(tokens, TokenizeStage) else models[name].positions
        if isinstance(stage.engine, MegatronEngine):
            made_by = recipe.stages[stage.inputs.model]
            imported = made_by if isinstance(made_by, ImportCheckpointStage) else None
            wanted, teacher = stage.resources, models.get(stage.inputs.teacher or "")
            sizes = (length, wanted.nodes, wanted.gpus_per_node)
            return _megatron(megatron.Plan(models[name], stage.engine, *sizes, teacher, imported), capacity)
        return None if capacity is None else _sft(models[name], stage.engine, length, capacity)
    if capacity is None:
        return None
    if isinstance(stage, GRPOStage) and name in models:
        return Need(_grpo(models[name], stage.engine, capacity), "lower engine.micro_batch_size or engine.prompts")
    if isinstance(stage, EvaluateStage | GenerateStage):
        return _answering(stage, models, capacity)
    return None


def _answering(stage: EvaluateStage | GenerateStage, models: Mapping[str, ModelSpec], capacity: int) -> Need | None:
    """The model comes from a stage, or from a directory that the engine names."""
    engine = stage.engine
    if not isinstance(engine, HFEngine | VLLMEngine):
        return None
    source = stage.inputs.model if isinstance(stage, EvaluateStage) else stage.inputs.teacher
    named = _spec(Path(engine.model_path)) if source is None and engine.model_path is not None else None
    model = models.get(source) if source is not None else named
    if model is None:
        return None
    if isinstance(engine, VLLMEngine):
        return _serving(model, engine, stage.sampling, capacity)
    return _sampling(model, engine, stage.sampling, capacity)


def _megatron(plan: megatron.Plan, capacity: int | None) -> Need:
    """The layout and the memory, with the nearest layouts that work where this one does not."""
    found = tuple(megatron.layout_problems(plan))
    wrong = {problem.rule for problem in errors(list(found))} - megatron.OWN_RULES
    table = None if capacity is None or wrong else megatron.memory(plan, capacity)
    works = not wrong and (table is None or table.fits)
    return Need(table, "" if works else megatron.remedy(plan, capacity), problems=found)


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


def _serving(model: ModelSpec, engine: VLLMEngine, sampling: Sampling, capacity: int) -> Need:
    """vLLM: weights, activations, and a cache for at least one sequence of max_model_len, without which it does not
    start; all that is left over is more cache."""
    length = engine.max_model_len or model.positions

    def table(tensor: int, tokens: int) -> MemoryTable:
        found = serving_memory(
            model,
            capacity,
            tensor=tensor,
            utilization=engine.gpu_memory_utilization,
            weight_bytes=4 if engine.dtype == "float32" else 1 if engine.quantization == "fp8" else 2,
            cache_bytes=2 if engine.kv_cache_dtype == "auto" else 1,
            sequences=engine.max_num_seqs,
        )
        others = [row for row in found.table.rows if row.component != "key-value cache"]
        cache = Row("key-value cache of one sequence", tokens * found.cache_per_token)
        return MemoryTable((*others, cache), found.table.capacity, found.table.where)

    wanted = min(sampling.max_tokens + 1024, length)
    for tensor in (size for size in (1, 2, 4, 8) if size >= engine.tensor_parallel and model.heads % size == 0):
        if tensor > engine.tensor_parallel and table(tensor, length).fits:
            return Need(table(engine.tensor_parallel, length), f"it would fit with engine.tensor_parallel: {tensor}")
        if table(tensor, wanted).fits:
            more = f", tensor_parallel: {tensor}" if tensor > engine.tensor_parallel else ""
            return Need(
                table(engine.tensor_parallel, length), f"it would fit with engine: {{max_model_len: {wanted}{more}}}"
            )
    return Need(table(engine.tensor_parallel, length), "it takes GPUs with more memory, or quantization: fp8")
