"""Whether a training on Megatron-core divides its model and fits its GPUs, and the nearest layouts that would.

`stages` calls it for each distill stage of the engines `nemo` and `megatron_bridge`, before anything is queued.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from checkpoints_conversion.directories import DIRECTORIES
from checkpoints_conversion.spec import ModelSpec
from recipes.engines.megatron.options import MegatronEngine
from recipes.engines.megatron.precision import BF16, FP32, RecomputeFull
from recipes.preflight.layout import Problem, errors, problems
from recipes.preflight.memory import Training, training_memory
from recipes.preflight.parallelism import Batch
from recipes.preflight.shape import held_by_stage, padded_rows
from recipes.preflight.suggest import Suggestion, suggest
from recipes.preflight.table import MemoryTable, Row
from recipes.stages.import_checkpoint import ImportCheckpointStage

OWN_RULES = frozenset({"rows", "bf16_layers", "vocabulary_rows", "teacher_vocabulary", "teacher"})
"""Those that another layout would not mend."""

ENDLESS = 2**60
"""Bytes of a GPU where nobody says how many it has."""

_KEYS = {
    "batch.sequence_length": "sequence_length",
    "batch.micro": "micro_batch_size",
    "batch.global_": "batch_size",
    "training.recompute": "recompute.type",
    "precision": "precision.type",
}
"""What preflight's own names are called in the engine's options."""


@dataclass(frozen=True)
class Plan:
    """A training as it is planned."""

    model: ModelSpec
    engine: MegatronEngine
    longest: int
    """Tokens of the longest row, the last of which is predicted only."""
    nodes: int
    gpus_per_node: int
    teacher: ModelSpec | None = None
    """Whose logits are learned."""
    imported: ImportCheckpointStage | None = None
    """What made the directory that it starts from, where that is known."""

    @property
    def gpus(self) -> int:
        """Processes; one where no GPU is asked for."""
        return self.nodes * max(self.gpus_per_node, 1)

    @property
    def batch(self) -> Batch:
        """The sequences of a step, at their longest."""
        length = self.engine.sequence_length or _up(max(self.longest - 1, 1), self.engine.sequence_step)
        return Batch(sequence_length=length, micro=self.engine.micro_batch_size, global_=self.engine.batch_size)

    @property
    def training(self) -> Training:
        """What of the options decides memory."""
        engine, recompute = self.engine, self.engine.recompute
        precision = engine.precision
        wide = isinstance(precision, FP32) or (isinstance(precision, BF16) and precision.gradients_fp32)
        full = recompute if isinstance(recompute, RecomputeFull) else RecomputeFull()
        return Training(
            recompute=recompute.type,
            recompute_method=full.method,
            recompute_layers=full.layers,
            distributed_optimizer=engine.distributed_optimizer,
            gradient_bytes=4 if wide else 2,
            fp8_weights=getattr(precision, "fp8_parameters", False),
            fused_attention=engine.layer_spec == "te" and engine.attention_backend not in ("unfused", "local"),
            lora_rank=None if engine.lora is None else engine.lora.rank,
        )


def layout_problems(plan: Plan) -> list[Problem]:
    """All that is wrong with the layout, errors first, under the keys of the recipe."""
    # Both engines take the vocabulary as the import padded it.
    found = [problem for problem in _laid_out(plan, plan.model) if problem.rule != "vocabulary"]
    found += _beyond_the_layout(plan)
    return [replace(problem, keys=tuple(map(_key, problem.keys))) for problem in found]


def _laid_out(plan: Plan, model: ModelSpec) -> list[Problem]:
    """What megatron-core would say of a model over these GPUs."""
    engine = plan.engine
    return problems(
        model,
        engine.parallelism,
        plan.batch,
        plan.gpus,
        max(plan.gpus_per_node, 1),
        engine.precision.type,
        core=engine.core,
        transformer_engine=engine.layer_spec == "te",
    )


def memory(plan: Plan, capacity: int) -> MemoryTable:
    """What it takes of the GPU that holds most, of `capacity` bytes."""
    engine, batch = plan.engine, plan.batch
    table = training_memory(
        plan.model, engine.parallelism, batch, plan.gpus, engine.precision.type, plan.training, capacity
    )
    return table if plan.teacher is None else replace(table, rows=(*table.rows, *_teacher(plan, plan.teacher)))


def remedy(plan: Plan, capacity: int | None) -> str:
    """The nearest layouts on the same GPUs that work, as changes of the recipe; or that none does."""
    beside = sum(row.bytes for row in _teacher(plan, plan.teacher)) if plan.teacher else 0
    engine = plan.engine
    found = suggest(
        plan.model,
        engine.parallelism,
        plan.batch,
        plan.gpus,
        max(plan.gpus_per_node, 1),
        engine.precision.type,
        plan.training,
        (ENDLESS if capacity is None else capacity) - beside,
        core=engine.core,
        transformer_engine=engine.layer_spec == "te",
        limit=6,
    )
    ways = [way for suggestion in found if (way := _way(plan, suggestion))][:3]
    if not ways:
        return "no layout on these GPUs works; take more GPUs, shorter sequences or a smaller model"
    return f"what works: {'; or '.join(ways)}"


def _beyond_the_layout(plan: Plan) -> list[Problem]:
    """What only these engines ask of a model: room for every row, bf16 layers within a stage, a teacher that fits."""
    engine, model, teacher = plan.engine, plan.model, plan.teacher
    found = []
    if engine.sequence_length is not None and plan.longest - 1 > engine.sequence_length:
        found.append(
            Problem(
                "rows",
                ("sequence_length",),
                f"{engine.sequence_length} tokens for rows of up to {plan.longest}",
                "a row that is longer would end the training",
                f"take {_up(plan.longest - 1, engine.sequence_step)} or more, or tokenize with a max_tokens of "
                f"{engine.sequence_length + 1} or less",
            )
        )
    found += _import_problems(plan)
    each = model.layers // engine.parallelism.pipeline
    for key in ("first_layers_bf16", "last_layers_bf16"):
        count = getattr(engine.precision, key, 0)
        if count > each:
            found.append(
                Problem(
                    "bf16_layers",
                    (f"precision.{key}", "parallelism.pipeline"),
                    f"{count} for a stage of {each} layers",
                    "megatron-core keeps them within one stage",
                    f"take {each} or less",
                )
            )
    if teacher is not None and (problem := _teacher_problem(plan, teacher)):
        found.append(problem)
    return found


def _import_problems(plan: Plan) -> list[Problem]:
    """What the conversion before it must have done: make an embedding that its GPUs can share."""
    imported, tensor = plan.imported, plan.engine.parallelism.tensor
    found = []
    usual = DIRECTORIES[plan.engine.directory].vocabulary_multiple
    multiple = (imported.pad_vocabulary if imported else None) or usual
    rows = plan.model.padded_vocabulary(multiple)
    if rows % tensor:
        found.append(
            Problem(
                "vocabulary_rows",
                ("parallelism.tensor", "model.vocabulary"),
                f"{tensor} for an embedding of {rows} rows",
                "they are shared evenly",
                f"set pad_vocabulary: {math.lcm(multiple, tensor)} in the import_checkpoint stage",
            )
        )
    return found


def _teacher_problem(plan: Plan, teacher: ModelSpec) -> Problem | None:
    """A teacher is laid over the GPUs as the student is, and speaks of the same tokens."""
    if teacher.vocabulary != plan.model.vocabulary:
        return Problem(
            "teacher_vocabulary",
            ("inputs.teacher", "model.vocabulary"),
            f"{teacher.vocabulary} tokens beside the student's {plan.model.vocabulary}",
            "the divergence is between distributions over one vocabulary",
            "take a teacher with the student's tokenizer",
        )
    wrong = errors(_laid_out(plan, teacher))
    if not wrong:
        return None
    return replace(wrong[0], rule="teacher", why=f"of the teacher, {wrong[0].why}")


def _teacher(plan: Plan, teacher: ModelSpec) -> list[Row]:
    """What the teacher takes of the fullest GPU: bf16 weights, and beside the student's logits its own and both
    distributions in fp32 (ModelOpt's LogitsKLLoss), over TP."""
    layout, batch = plan.engine.parallelism, plan.batch
    weights = max(held_by_stage(teacher, layout, stage).total for stage in range(layout.pipeline))
    element = 4 if isinstance(plan.engine.precision, FP32) else 2
    tokens = batch.sequence_length * batch.micro / layout.context
    logits = tokens * padded_rows(teacher, layout) / layout.tensor * (element + 4 * 4)
    return [Row("teacher's weights", round(weights * element)), Row("teacher's logits", round(logits))]


def _way(plan: Plan, suggestion: Suggestion) -> str:
    """What a suggestion changes in the recipe; empty where the engine would not take it, whose rules are stricter."""
    engine, recompute = plan.engine, suggestion.training.recompute
    changes: dict[str, Any] = {
        "parallelism": suggestion.parallelism.model_dump(),
        "batch_size": suggestion.batch.global_,
        "sequence_length": engine.sequence_length and suggestion.batch.sequence_length,
    }
    if recompute != engine.recompute.type:
        changes["recompute"] = {"type": recompute}
    options = engine.model_dump()
    try:
        type(engine).model_validate(options | changes)
    except ValidationError:
        return ""
    found = []
    for key, value in changes.items():
        if isinstance(value, dict):
            found += [f"engine.{key}.{name}: {it}" for name, it in value.items() if options[key].get(name) != it]
        elif options[key] != value:
            found.append(f"engine.{key}: {value}")
    return ", ".join(found)


def _key(key: str) -> str:
    found = _KEYS.get(key, key)
    return found if found.startswith(("model.", "inputs.")) else f"engine.{found}"


def _up(length: int, multiple: int) -> int:
    return math.ceil(length / multiple) * multiple
