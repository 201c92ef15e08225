"""`distill`: the student learns the teacher's traces."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from reasonforge.artifacts import ArtifactKind
from reasonforge.config import Strict
from recipes.engines.megatron.options import MegatronEngine
from recipes.engines.megatron_bridge.options import MegatronBridgeEngine
from recipes.engines.nemo.options import NeMoEngine
from recipes.engines.trl_sft import TRLSFT
from recipes.stage import InputOf, InputRef, Stage, StageContext
from recipes.stages.import_checkpoint import ImportCheckpointStage
from recipes.stages.tokenize import TokenizeStage


class DistillInputs(Strict):
    """What goes in."""

    model: Annotated[str, InputOf("hf_checkpoint")]
    """The student before distillation: an hf_checkpoint for trl, a megatron_checkpoint for nemo and
    megatron_bridge."""
    tokens: Annotated[str, InputOf("tokens")]
    """Tokenized traces."""
    teacher: Annotated[str, InputOf("hf_checkpoint")] | None = None
    """A model whose logits the student learns on the traces, of the same kind and vocabulary as `model`; null learns
    the traces alone."""


class DistillStage(Stage):
    """Train a student on curated traces."""

    type: Literal["distill"] = "distill"
    inputs: DistillInputs
    engine: Annotated[TRLSFT | NeMoEngine | MegatronBridgeEngine, Field(discriminator="type")]
    """What trains, and how."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        teacher = self.inputs.teacher is not None
        if isinstance(self.engine, TRLSFT):
            if teacher:
                raise ValueError(
                    "inputs.teacher is given, but engine trl learns from traces alone; "
                    "leave it out, or take engine megatron_bridge or nemo"
                )
        elif teacher and self.engine.distillation is None:
            raise ValueError(
                "inputs.teacher is given, but engine.distillation is not; set engine.distillation: {} to learn the "
                "teacher's logits, or leave the teacher out"
            )
        elif self.engine.distillation is not None and not teacher:
            raise ValueError(
                "engine.distillation is given, but inputs.teacher is not; name the stage that imported the teacher, "
                "or leave distillation out"
            )
        return self

    @property
    def kind(self) -> ArtifactKind:  # type: ignore[override]
        """The engine's kind of checkpoint, which goes in and comes out."""
        return self.engine.checkpoint

    @property
    def parallel(self) -> bool:
        """Megatron-core runs as one process a GPU."""
        return isinstance(self.engine, MegatronEngine)

    @property
    def environment(self) -> str | None:
        """NeMo and Megatron-Bridge have environments of their own."""
        return self.engine.environment if isinstance(self.engine, MegatronEngine) else None

    @property
    def needs(self) -> tuple[str, ...]:
        """The engine's modules."""
        return self.engine.needs

    def input_refs(self) -> Iterator[InputRef]:
        """The checkpoints that go in are of the engine's kind."""
        for ref in super().input_refs():
            yield replace(ref, kind=self.kind) if ref.kind == "hf_checkpoint" else ref

    def check_inputs(self, stages: Mapping[str, Stage]) -> None:
        """Checkpoints are directories of the engine's own kind, and a validation needs rows that were held out."""
        engine = self.engine
        if not isinstance(engine, MegatronEngine):
            return
        for key in ("model", "teacher"):
            made_by = stages.get(getattr(self.inputs, key) or "")
            found = _made_for(made_by)
            if found not in (None, engine.directory):
                remedy = (
                    f"set directory: {engine.directory} there"
                    if isinstance(made_by, ImportCheckpointStage)
                    else f"take engine {engine.type} there too"
                )
                raise ValueError(
                    f"inputs.{key} is {getattr(self.inputs, key)}, which makes directories of kind {found}, but engine "
                    f"{engine.type} takes those of kind {engine.directory}; {remedy}"
                )
        tokens = stages[self.inputs.tokens]
        if engine.validate_every is not None and isinstance(tokens, TokenizeStage) and not tokens.held_out:
            raise ValueError(
                f"engine.validate_every is given, but stage {self.inputs.tokens} holds no rows out; "
                "set held_out there, or leave validate_every out"
            )

    def run(self, context: StageContext) -> dict[str, Any]:
        """Train and write the checkpoint with its metrics.jsonl."""
        if isinstance(self.engine, NeMoEngine):
            from recipes.engines.nemo.training import train

            return train(self.engine, context)
        if isinstance(self.engine, MegatronBridgeEngine):
            from recipes.engines.megatron_bridge.training import train as train_with_bridge

            return train_with_bridge(self.engine, context)
        return self.engine.train(
            context.path("model"),
            context.path("tokens") / "tokens.parquet",
            scratch=context.scratch,
            out=context.out,
            seed=context.seed,
            progress=context.progress,
        )


def _made_for(stage: Stage | None) -> str | None:
    """The kind of Megatron directory that a stage makes; None where it makes none that is known."""
    if isinstance(stage, ImportCheckpointStage):
        return stage.directory
    if isinstance(stage, DistillStage) and isinstance(stage.engine, MegatronEngine):
        return stage.engine.directory
    return None
