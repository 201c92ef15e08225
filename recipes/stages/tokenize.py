"""`tokenize`: the dataset as token ids through the student's chat template, with the loss on the completion only."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from data_prep.formats.packing import Packed, write_packed
from data_prep.tokenization.dataset import Tokenization, finish, tokenize_part
from reasonforge.artifacts import ArtifactKind
from reasonforge.config import Operational, Strict
from reasonforge.files import write_json
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
    version: ClassVar[int] = 2
    divisible: ClassVar[bool] = True

    type: Literal["tokenize"] = "tokenize"
    inputs: TokenizeInputs
    max_tokens: int = Field(ge=1)
    """Tokens of a training example, prompt included; longer rows are dropped: cut, they would lose their answer."""
    held_out: int = Field(default=0, ge=0)
    """Rows set apart for the validation loss, in held_out.parquet: at least so many, all rows of some problems, which
    are drawn with the recipe's seed."""
    packed: Packed | None = None
    """Also write the rows packed, as `nemo` and `megatron_bridge` read them; `trl` needs none."""
    workers: Annotated[int, Operational()] = Field(default=1, ge=1)
    """Processes; more pay off from some 100 MB on."""

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        if self.packed is not None and self.max_tokens > self.packed.size + 1:
            raise ValueError(
                f"max_tokens is {self.max_tokens}, but a pack of packed.size {self.packed.size} takes rows of at most "
                f"{self.packed.size + 1} tokens; lower max_tokens or raise packed.size"
            )
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """The tokenizer, the template engine and the parquet writer."""
        return ("tokenizers", "jinja2", "pyarrow")

    def run(self, context: StageContext) -> dict[str, Any]:
        """Finish what parts are not done, put them together as one file, and pack it."""
        parts = self.resources.array
        for part in range(parts):
            self.run_part(context, part)
        summary = finish(self._plan(context), parts, context.out, scratch=context.scratch)
        counts = {
            name: summary[name] for name in ("rows", "tokens", "completion_tokens", "longest", "rows_without_eos")
        }
        counts |= {f"held_out_{name}": count for name, count in summary.get("held_out", {}).items()}
        counts |= {f"dropped_{reason}": count for reason, count in summary["dropped"].items()}
        if self.packed is not None:
            summary["packed"] = write_packed(self.packed, context.out)
            write_json(context.out / "tokens.json", summary)
            counts |= {f"packed_{name}": summary["packed"][name] for name in ("bins", "wasted", "efficiency")}
        return counts

    def run_part(self, context: StageContext, part: int) -> None:
        """Tokenize a run of the dataset's shards, which are the same whatever the number of parts."""
        with context.progress("tokenizing", 0, "shards") as progress:
            tokenize_part(
                self._plan(context),
                part,
                self.resources.array,
                scratch=context.scratch,
                workers=self.workers,
                progress=progress,
            )

    def _plan(self, context: StageContext) -> Tokenization:
        dataset = context.path("dataset") / "dataset.jsonl"
        return Tokenization(dataset, context.path("model"), self.max_tokens, self.held_out, context.seed)
