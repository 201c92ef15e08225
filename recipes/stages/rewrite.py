"""`rewrite`: a teacher makes correct traces shorter; what does not pass the verifier again stays as it was."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from data_prep.generation import ChatEngine
from data_prep.grading import Grader
from data_prep.rewriting import Rewriting, rewrite
from reasonforge.artifacts import ArtifactKind
from reasonforge.config import Operational, Strict
from recipes.stage import InputOf, Stage, StageContext


class RewriteInputs(Strict):
    """What goes in."""

    traces: Annotated[str, InputOf("traces")]
    """The stage that made the traces."""


class RewriteStage(Stage):
    """Shorten traces, between `generate` and `curate`: for `curate` the artifact is what `generate` gives."""

    kind: ClassVar[ArtifactKind] = "traces"

    type: Literal["rewrite"] = "rewrite"
    inputs: RewriteInputs
    grader: Grader
    """What verifies the traces, before and after; as in the `curate` stage."""
    rewriting: Rewriting
    """Who rewrites, how, and what is accepted."""
    workers: Annotated[int, Operational()] = Field(default=2, ge=1)
    """Processes that grade."""

    @property
    def engine(self) -> ChatEngine:
        """Who rewrites."""
        return self.rewriting.engine

    @property
    def needs(self) -> tuple[str, ...]:
        """The modules of the grader and the engine."""
        return (*self.grader.needs, *self.rewriting.engine.needs)

    @property
    def external_files(self) -> tuple[Path, ...]:
        """The files of a teacher that the user names by its directory."""
        return self.rewriting.engine.external_files

    def run(self, context: StageContext) -> dict[str, Any]:
        """Grade, ask and grade again; grades and replies of earlier attempts are in the scratch directory."""
        return rewrite(
            context.path("traces") / "traces.jsonl",
            context.out / "traces.jsonl",
            self.rewriting,
            self.grader,
            scratch=context.scratch,
            seed=context.seed,
            workers=self.workers,
            progress=context.progress,
        )
