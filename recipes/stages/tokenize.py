"""`tokenize`: the dataset as token ids through the student's chat template, with the loss on the completion only."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from data_prep.tokenization import tokenize_file
from reasonforge.artifacts import ArtifactKind
from reasonforge.config import Operational, Strict
from recipes.stage import InputOf, Stage, StageContext


class TokenizeInputs(Strict):
    """What goes in."""

    dataset: Annotated[str, InputOf("dataset")]
    """The stage that curated the traces."""
    model: Annotated[str, InputOf("hf_checkpoint")]
    """The student, whose tokenizer and chat template are used."""


class TokenizeStage(Stage):
    """Turn curated traces into training examples."""

    kind: ClassVar[ArtifactKind] = "tokens"

    type: Literal["tokenize"] = "tokenize"
    inputs: TokenizeInputs
    max_tokens: int = Field(ge=1)
    """Tokens of a training example, prompt included; longer rows are dropped: cut, they would lose their answer."""
    workers: Annotated[int, Operational()] = Field(default=1, ge=1)
    """Processes. With 1 the tokenizer's own threads use all cores; more pay off from some 100,000 long rows on."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The tokenizer, the template engine and the parquet writer."""
        return ("transformers", "jinja2", "pyarrow")

    def run(self, context: StageContext) -> dict[str, Any]:
        """Tokenize in resumable shards, then write them as one file."""
        dataset = context.path("dataset") / "dataset.jsonl"
        with dataset.open("rb") as handle:
            total = sum(1 for line in handle if line.strip())
        with context.progress("tokenizing", total, "rows") as progress:
            summary = tokenize_file(
                dataset,
                context.path("model"),
                context.out,
                max_tokens=self.max_tokens,
                scratch=context.scratch,
                workers=self.workers,
                progress=progress,
            )
        dropped = {f"dropped_{reason}": count for reason, count in summary["dropped"].items()}
        names = ("rows", "tokens", "completion_tokens", "longest", "rows_without_eos")
        return {**{name: summary[name] for name in names}, **dropped}
