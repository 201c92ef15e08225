"""`import_checkpoint`: a Hugging Face model as the Megatron checkpoint that a training framework starts from."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from checkpoints_conversion.importing import ImportOptions, import_checkpoint
from checkpoints_conversion.publishing import RECEIPT, Outcome
from reasonforge.artifacts import ArtifactKind
from reasonforge.config import Operational, Strict
from recipes.stage import InputOf, Stage, StageContext


class ImportInputs(Strict):
    """What goes in."""

    model: Annotated[str, InputOf("hf_checkpoint")]
    """The stage that made the model."""


class ImportCheckpointStage(Stage):
    """Convert a model from Hugging Face to Megatron; every bit is kept unless a type is given."""

    kind: ClassVar[ArtifactKind] = "megatron_checkpoint"

    type: Literal["import_checkpoint"] = "import_checkpoint"
    inputs: ImportInputs
    directory: Literal["megatron", "nemo", "bridge"] = "megatron"
    """Whose directory is made: the framework that is going to load it."""
    pad_vocabulary: int | None = Field(default=None, ge=1)
    """Embedding rows are padded with zeros to a multiple of this: Megatron-LM's --make-vocab-size-divisible-by, times
    the tensor parallelism of the training. null takes what is usual: 128, or 1 for bridge."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """The type to which every weight is rounded; null keeps each one's own."""
    layer_spec: Literal["te", "local"] = "te"
    """Whose keys are written where Transformer Engine's layers and megatron-core's local ones differ (experts)."""
    workers: Annotated[int, Operational()] = Field(default=2, ge=1)
    """Threads that copy at once."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing but reasonforge itself."""
        return ()

    def run(self, context: StageContext) -> dict[str, Any]:
        """Convert; a conversion that was killed goes on from the last write that reached the disk."""
        options = ImportOptions(
            vocabulary_multiple=self.pad_vocabulary,
            directory=self.directory,
            layer_spec=self.layer_spec,
            dtype=self.dtype,
        )
        destination = context.scratch / "converted"
        outcome = import_checkpoint(
            context.path("model"),
            destination,
            options,
            self.workers,
            lambda total: context.progress("importing", total, "bytes"),
        )
        return hand_over(outcome, context.out)


def hand_over(outcome: Outcome, out: Path) -> dict[str, Any]:
    """Make a finished conversion a stage's output, without its own receipt: the artifact's stands in its place, and
    this one's times of files would make another artifact of the same bytes."""
    outcome.destination.replace(out)
    (out / RECEIPT).unlink()
    return {"bytes": outcome.bytes}
