"""The stage `report`: compares the evaluated models and tells of their data, training, cost and receipts.

Its artifact holds `index.html` (one self-contained page), `report.json` and `report.md`.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from reasonforge.artifacts import ArtifactKind
from reasonforge.config import Strict
from reasonforge.files import write_atomic, write_json
from recipes.accounting import read_usage
from recipes.evaluation.bootstrap import RESAMPLES
from recipes.report import content, markdown, page
from recipes.stage import InputOf, Stage, StageContext


class ReportInputs(Strict):
    """What a report tells of."""

    scores: dict[str, Annotated[str, InputOf("scores")]] = Field(min_length=1)
    """The evaluations by the model's name in the report. Their order is kept: the first is the base, and each of the
    others is compared with the one before it.
    """
    dataset: Annotated[str, InputOf("dataset")] | None = None
    """The curated dataset, for its funnel."""
    training: dict[str, Annotated[str, InputOf("hf_checkpoint", ("megatron_checkpoint",))]] = Field(
        default_factory=dict
    )
    """Trained models by the same names, for their curves."""


class ReportStage(Stage):
    """A page, a JSON file and a Markdown file on one run."""

    kind: ClassVar[ArtifactKind] = "report"

    type: Literal["report"] = "report"
    inputs: ReportInputs
    """Scores, and optionally the dataset and the trained models."""
    title: str | None = None
    """The page's title; null names the models."""
    resamples: int = Field(default=RESAMPLES, ge=100)
    """Bootstrap resamples of the paired differences."""

    @property
    def needs(self) -> tuple[str, ...]:
        """numpy for the bootstrap, jinja2 for the page."""
        return ("jinja2", "numpy")

    def run(self, context: StageContext) -> dict[str, Any]:
        """Gather, compare, write."""
        found = content.gather(
            context.group("scores"),
            context.inputs.get("dataset"),
            context.group("training"),
            read_usage(context.accounting) if context.accounting else [],
            resamples=self.resamples,
            seed=context.seed,
        )
        title = self.title or " → ".join(found.scores)
        write_json(context.out / "report.json", content.as_json(found))
        write_atomic(context.out / "report.md", markdown.render(found, title))
        write_atomic(context.out / "index.html", page.render(found, title))
        return {
            "models": len(found.scores),
            "problems": found.first_scores.problems,
            **{f"pass@1 {name}": scores.metrics["pass@1"].value for name, scores in found.scores.items()},
        }
