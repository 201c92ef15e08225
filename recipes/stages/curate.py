"""`curate`: traces are verified, filtered, deduplicated and decontaminated; what is left is the dataset."""

from itertools import chain
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from data_prep.curation import select, verify
from data_prep.decontamination import Decontamination
from data_prep.deduplication import NearDuplicates
from data_prep.filters import CorrectFilter, Filters, RepetitionFilter, ThinkingFilter, TruncationFilter
from data_prep.grading import Grader
from reasonforge.artifacts import ArtifactKind
from reasonforge.config import Operational, Strict
from reasonforge.files import read_jsonl
from recipes.stage import InputOf, Stage, StageContext


class CurateInputs(Strict):
    """What goes in."""

    traces: Annotated[str, InputOf("traces")]
    """The stage that made the traces."""
    problems: Annotated[str, InputOf("problems")]
    """The stage that made the problems; no prompt of the dataset may share a run of words with its eval.jsonl."""


def _default_filters() -> list[Filters]:
    return [CorrectFilter(), TruncationFilter(), ThinkingFilter(), RepetitionFilter()]


class CurateStage(Stage):
    """Keep the traces that are worth learning from. Every dropped row is kept aside with its reason."""

    kind: ClassVar[ArtifactKind] = "dataset"

    type: Literal["curate"] = "curate"
    inputs: CurateInputs
    grader: Grader
    """What extracts and verifies the answers."""
    filters: list[Filters] = Field(default_factory=_default_filters)
    """Applied in this order. The default drops what is not correct, truncated, not thought once, or stuck in a loop."""
    deduplicate: bool = True
    """Whether of rows with the same prompt and response only the first is kept."""
    near_duplicates: NearDuplicates | None = None
    """When two rows are near-duplicates, of which only the first is kept; null looks for none."""
    decontaminate: Decontamination | None = Decontamination()
    """How evaluation problems are found in prompts; null looks for none."""
    workers: Annotated[int, Operational()] = Field(default=2, ge=1)
    """Processes that grade."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The grader's modules."""
        return self.grader.needs

    def run(self, context: StageContext) -> dict[str, Any]:
        """Verify (resumable, in shards), then select in one pass."""
        traces = context.path("traces") / "traces.jsonl"
        with traces.open("rb") as handle:
            total = sum(1 for line in handle if line.strip())
        with context.progress("grading", total, "traces") as progress:
            shards = verify(traces, self.grader, scratch=context.scratch, workers=self.workers, progress=progress)
        return select(
            chain.from_iterable(map(read_jsonl, shards)),
            self.filters,
            deduplicate=self.deduplicate,
            decontamination=self.decontaminate,
            evaluation=read_jsonl(context.path("problems") / "eval.jsonl"),
            out=context.out,
            near_duplicates=self.near_duplicates,
        )
