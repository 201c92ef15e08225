"""`base_model`: the student before anything is taught to it, from a checkpoint on disk or trained from scratch."""

import shutil
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from data_prep.tokenization.dataset import tokenize_rows
from reasonforge.artifacts import RECEIPT, ArtifactKind
from reasonforge.config import Strict
from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl
from recipes.engines.scratch import TinyModel
from recipes.engines.trl_sft import TRLSFT
from recipes.stage import InputOf, Stage, StageContext

_NEEDED = {
    "config.json": ("config.json",),
    "tokenizer_config.json": ("tokenizer_config.json",),
    "tokenizer.json": ("tokenizer.json", "tokenizer.model", "vocab.json"),
    "model.safetensors": ("model.safetensors", "model.safetensors.index.json"),
}
"""What a model directory must have: for each file, what may stand in its place."""


class CheckpointSource(Strict):
    """A Hugging Face model directory that is already on disk."""

    needs: ClassVar[tuple[str, ...]] = ()

    type: Literal["checkpoint"] = "checkpoint"
    path: str
    """The directory; it is copied, so that later changes to it do not reach the run."""

    @property
    def external_files(self) -> tuple[Path, ...]:
        """Every file of the directory."""
        return tuple(sorted(path for path in Path(self.path).rglob("*") if path.is_file()))

    def make(self, context: StageContext) -> dict[str, Any]:
        """Copy the directory. Raises RequestError where it is not a model with its tokenizer."""
        source = Path(self.path)
        for name, choices in _NEEDED.items():
            if not any((source / choice).is_file() for choice in choices):
                raise RequestError(
                    str(source),
                    f"no {name}, so no Hugging Face model with its tokenizer",
                    "give a directory that from_pretrained can load",
                )
        shutil.copytree(source, context.out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(RECEIPT, ".git"))
        return {"bytes": sum(path.stat().st_size for path in context.out.rglob("*") if path.is_file())}


class ScratchSource(Strict):
    """A tiny model, trained here to answer without thinking: it knows the form of an answer, and guesses."""

    needs: ClassVar[tuple[str, ...]] = (*TinyModel.needs, *TRLSFT.needs)

    type: Literal["scratch"] = "scratch"
    model: TinyModel = TinyModel()
    """Its shape."""
    training: TRLSFT = Field(default_factory=lambda: TRLSFT(steps=100, learning_rate=2e-3, adam_beta2=0.98))
    """How it learns to answer."""

    def make(self, context: StageContext) -> dict[str, Any]:
        """Build the tokenizer and the model, and train it on the problems with their bare answers."""
        rows = [
            {"id": row["id"], "prompt": row["prompt"], "response": f"\\boxed{{{row['answer']}}}"}
            for row in read_jsonl(context.path("problems") / "train.jsonl")
        ]
        initial = context.scratch / "initial"
        self.model.build(((row["prompt"], row["response"]) for row in rows), initial, context.seed)
        tokens = context.scratch / "tokens.parquet"
        tokenize_rows(rows, initial, tokens, max_tokens=self.model.max_position)
        return self.training.train(
            initial, tokens, scratch=context.scratch, out=context.out, seed=context.seed, progress=context.progress
        )


class BaseModelInputs(Strict):
    """What goes in."""

    problems: Annotated[str, InputOf("problems")] | None = None
    """Needed to train from scratch; its train.jsonl is used."""


class BaseModelStage(Stage):
    """Bring the student into the run."""

    kind: ClassVar[ArtifactKind] = "hf_checkpoint"

    type: Literal["base_model"] = "base_model"
    inputs: BaseModelInputs = BaseModelInputs()
    source: Annotated[CheckpointSource | ScratchSource, Field(discriminator="type")]
    """Where the model comes from."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.source, ScratchSource) and self.inputs.problems is None:
            raise ValueError("source is scratch, but inputs.problems is not given; name the stage that makes problems")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """The source's modules."""
        return self.source.needs

    @property
    def external_files(self) -> tuple[Path, ...]:
        """The files of a checkpoint on disk."""
        return self.source.external_files if isinstance(self.source, CheckpointSource) else ()

    def run(self, context: StageContext) -> dict[str, Any]:
        """Copy or train the model."""
        return self.source.make(context)
