"""`export_checkpoint`: what a framework trained, at any parallelism, as a Hugging Face model."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from checkpoints_conversion.exporting import export_checkpoint
from reasonforge.artifacts import ArtifactKind
from reasonforge.config import Operational, Strict
from recipes.stage import InputOf, Stage, StageContext
from recipes.stages.import_checkpoint import hand_over


class ExportInputs(Strict):
    """What goes in."""

    checkpoint: Annotated[str, InputOf("megatron_checkpoint")]
    """The stage that trained or imported it."""
    reference: Annotated[str, InputOf("hf_checkpoint")] | None = None
    """Whose config.json, tokenizer and templates the result has; by default those that the checkpoint carries."""


class ExportCheckpointStage(Stage):
    """Convert a model from Megatron, NeMo 2 or Megatron-Bridge; every bit is kept unless a type is given."""

    kind: ClassVar[ArtifactKind] = "hf_checkpoint"

    type: Literal["export_checkpoint"] = "export_checkpoint"
    inputs: ExportInputs
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """The type to which every weight is rounded; null keeps each one's own."""
    max_shard_size: float = Field(default=5.0, gt=0)
    """GB of the largest file of weights; transformers' own default is 5."""
    workers: Annotated[int, Operational()] = Field(default=2, ge=1)
    """Threads that copy at once."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing but reasonforge itself."""
        return ()

    def run(self, context: StageContext) -> dict[str, Any]:
        """Convert; a conversion that was killed goes on from the last write that reached the disk."""
        outcome = export_checkpoint(
            context.path("checkpoint"),
            context.scratch / "converted",
            context.path("reference") if self.inputs.reference else None,
            int(self.max_shard_size * 1e9),
            self.workers,
            lambda total: context.progress("exporting", total, "bytes"),
            dtype=self.dtype,
        )
        return hand_over(outcome, context.out)
