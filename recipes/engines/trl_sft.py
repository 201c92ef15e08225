"""Supervised fine-tuning with TRL's SFTTrainer on a `tokens` artifact: the `trl` engine of `distill`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from reasonforge.artifacts import ArtifactKind
from reasonforge.config import Operational
from reasonforge.progress import Progress
from recipes.engines.trl_common import TrainOptions, load_student, save_student, train, training_arguments


class TRLSFT(TrainOptions):
    """Sequence-level distillation: cross-entropy on the teacher's completions (Kim and Rush 2016)."""

    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers", "trl", "datasets", "pyarrow")

    checkpoint: ClassVar[ArtifactKind] = "hf_checkpoint"
    """What it takes and makes."""

    type: Literal["trl"] = "trl"
    learning_rate: float = Field(1e-5, gt=0)
    """Peak learning rate; 1e-5 is open-r1's for full fine-tuning of 1.5B to 7B models on long traces."""
    batch_size: int = Field(16, gt=0)
    """Sequences an optimiser step."""
    micro_batch_size: Annotated[int | None, Operational(), Field(gt=0)] = None
    """Sequences a forward pass; null takes the whole batch at once. It must divide batch_size."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size = {self.micro_batch_size} does not divide batch_size = {self.batch_size}; "
                f"choose a divisor of {self.batch_size}"
            )
        return self

    def train(
        self,
        student: Path,
        tokens: Path,
        *,
        scratch: Path,
        out: Path,
        seed: int,
        progress: Callable[[str, int, str], Progress],
    ) -> dict[str, Any]:
        """Train `student` on `tokens` (a tokens.parquet) and write the checkpoint to `out`; returns counts."""
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        model, tokenizer = load_student(student)
        dataset = Dataset.from_parquet(
            str(tokens), cache_dir=str(scratch / "datasets"), columns=["input_ids", "completion_mask"]
        )
        micro = self.micro_batch_size or self.batch_size
        arguments = SFTConfig(
            **training_arguments(self, scratch, seed),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=self.batch_size // micro,
            max_length=None,
            completion_only_loss=True,
        )
        trainer = SFTTrainer(model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer)
        with progress("training", self.steps, "steps") as bar:
            metrics = train(trainer, self, scratch, bar)
        save_student(model, tokenizer, student, metrics, scratch, out)
        return {"steps": self.steps, "sequences": self.steps * self.batch_size, "loss": metrics[-1]["loss"]}
