"""`distill`: the student learns the teacher's traces."""

from typing import Annotated, Any, ClassVar, Literal

from reasonforge.artifacts import ArtifactKind
from reasonforge.config import Strict
from recipes.engines.trl_sft import TRLSFT
from recipes.stage import InputOf, Stage, StageContext


class DistillInputs(Strict):
    """What goes in."""

    model: Annotated[str, InputOf("hf_checkpoint")]
    """The student before distillation."""
    tokens: Annotated[str, InputOf("tokens")]
    """Tokenized traces."""


class DistillStage(Stage):
    """Train a student on curated traces."""

    kind: ClassVar[ArtifactKind] = "hf_checkpoint"

    type: Literal["distill"] = "distill"
    inputs: DistillInputs
    engine: TRLSFT
    """What trains, and how."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The engine's modules."""
        return self.engine.needs

    def run(self, context: StageContext) -> dict[str, Any]:
        """Train and write the checkpoint with its metrics.jsonl."""
        return self.engine.train(
            context.path("model"),
            context.path("tokens") / "tokens.parquet",
            scratch=context.scratch,
            out=context.out,
            seed=context.seed,
            progress=context.progress,
        )
