"""`curate`: traces are verified, annotated, filtered, deduplicated, decontaminated and selected; what is left is the
dataset, with a card that says how it was made."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from data_prep.annotation import Annotations
from data_prep.curation.card import Card, Facts, Origin, dataset_card
from data_prep.curation.curate import Curation
from data_prep.curation.steps import OnBadRows, Steps
from data_prep.filters import CorrectFilter, Filters, RepetitionFilter, ThinkingFilter, TruncationFilter
from data_prep.grading import Grader
from data_prep.overlap.decontamination import Benchmark, Decontamination
from data_prep.overlap.deduplication import NearDuplicates
from data_prep.selection import Selections
from reasonforge.artifacts import ArtifactKind, Receipt
from reasonforge.config import Operational, Strict, key_config
from reasonforge.files import read_json, write_atomic
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
    version: ClassVar[int] = 2
    divisible: ClassVar[bool] = True

    type: Literal["curate"] = "curate"
    inputs: CurateInputs
    grader: Grader
    """What extracts and verifies the answers."""
    annotate: list[Annotations] = Field(default_factory=list)
    """Columns that are added to each graded row, for the filters and selections, and for whoever reads the dataset."""
    filters: list[Filters] = Field(default_factory=_default_filters)
    """Applied in this order. The default drops what is not correct, truncated, not thought once, or stuck in a loop."""
    deduplicate: bool = True
    """Whether of rows with the same prompt and response only the first is kept."""
    near_duplicates: NearDuplicates | None = None
    """When two rows are near-duplicates, of which only the first is kept; null looks for none."""
    decontaminate: Decontamination | None = Decontamination()
    """How evaluation problems are found in prompts; null looks for none."""
    select: list[Selections] = Field(default_factory=list)
    """Which of the rows that are left are taken, one selection after the other."""
    bad_rows: OnBadRows = "refuse"
    """Whether a corrupt line of the traces ends the stage, or is set aside in `bad.jsonl` and counted."""
    card: Card = Card()
    """What the dataset's card says besides how it was made."""
    workers: Annotated[int, Operational()] = Field(default=2, ge=1)
    """Processes, in each job of an array."""

    @property
    def steps(self) -> Steps:
        """What is done, as `data_prep` takes it."""
        return Steps(
            grader=self.grader,
            annotate=self.annotate,
            filters=self.filters,
            deduplicate=self.deduplicate,
            near_duplicates=self.near_duplicates,
            decontaminate=self.decontaminate,
            select=self.select,
            bad_rows=self.bad_rows,
        )

    @property
    def needs(self) -> tuple[str, ...]:
        """The modules of the grader and the other steps."""
        return self.steps.needs

    @property
    def external_files(self) -> tuple[Path, ...]:
        """Benchmarks and models of the user's whose content decides what is kept."""
        return self.steps.external_files

    def run(self, context: StageContext) -> dict[str, Any]:
        """Do the shards that no part has done (resumable), then bring them together in one pass."""
        curation = self._curation(context)
        curation.work(workers=self.workers, progress=context.progress)
        counts = curation.finish(context.out, seed=context.seed, progress=context.progress)
        facts = Facts(
            origins=[_origin(context.inputs[name].receipt) for name in ("problems", "traces")],
            steps=key_config(self.steps),
            funnel=read_json(context.out / "funnel.json"),
            rows=counts["rows"],
        )
        write_atomic(context.out / "README.md", dataset_card(self.card, facts))
        return counts

    def run_part(self, context: StageContext, part: int) -> None:
        """Do a run of the shards. They are the same for any number of parts."""
        parts = self.resources.array
        self._curation(context).work(workers=self.workers, progress=context.progress, part=part, parts=parts)

    def _curation(self, context: StageContext) -> Curation:
        traces, problems = context.path("traces") / "traces.jsonl", context.path("problems") / "eval.jsonl"
        return Curation([traces], self.steps, context.scratch / "shards", [Benchmark(path=str(problems))])


def _origin(receipt: Receipt) -> Origin:
    licences = receipt.counts.get("licences", {})
    return Origin(receipt.stage, receipt.kind, receipt.digest, receipt.config, licences)
