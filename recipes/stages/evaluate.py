"""The stage `evaluate`: samples a model on the evaluation problems, grades the samples and scores them.

Its artifact holds `samples.jsonl` (graded rows) and `scores.json` (`recipes.evaluation.scoring.Scores`).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from data_prep.generation import HFEngine, VLLMEngine
from data_prep.generation.sampling import Sampling
from data_prep.grading import Grader, grade_rows
from data_prep.grading.voting import agreements
from reasonforge.artifacts import ArtifactKind
from reasonforge.config import Operational, Strict, key_config
from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl, write_json, write_jsonl
from recipes.evaluation.bootstrap import RESAMPLES
from recipes.evaluation.scoring import score
from recipes.stage import InputOf, Stage, StageContext


class EvaluateInputs(Strict):
    """What an evaluation needs."""

    model: Annotated[str, InputOf("hf_checkpoint")]
    """The stage that made the model."""
    problems: Annotated[str, InputOf("problems")]
    """The stage that made the problems; `eval.jsonl` is asked."""


class EvaluateStage(Stage):
    """n samples of each evaluation problem, graded and scored with intervals."""

    kind: ClassVar[ArtifactKind] = "scores"

    type: Literal["evaluate"] = "evaluate"
    inputs: EvaluateInputs
    """The model and the problems."""
    sampling: Sampling
    """How samples are drawn. Models can be compared only if theirs is the same."""
    engine: Annotated[HFEngine | VLLMEngine, Field(discriminator="type")]
    """What draws the samples from the model that comes in."""
    grader: Grader
    """What extracts and verifies the answers."""
    limit: int | None = Field(default=None, ge=1)
    """Problems asked, from the first; null asks all."""
    resamples: int = Field(default=RESAMPLES, ge=100)
    """Bootstrap resamples of each interval."""
    workers: Annotated[int, Operational()] = Field(default=2, ge=1)
    """Processes that grade."""

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        self.engine.check(self.sampling, self.resources.gpus_per_node)
        return self

    @property
    def external_files(self) -> tuple[Path, ...]:
        """The files that the engine's options name."""
        return self.engine.external_files

    @property
    def needs(self) -> tuple[str, ...]:
        """The engine's and the grader's modules, and numpy for the bootstrap."""
        return (*self.engine.needs, *self.grader.needs, "numpy")

    def run(self, context: StageContext) -> dict[str, Any]:
        """Generate (resumable), grade, score."""
        source = context.path("problems") / "eval.jsonl"
        problems = list(islice(read_jsonl(source), self.limit))
        if not problems:
            raise RequestError(str(source), "no problems to evaluate on", "ask the problems stage for some")
        traces, samples = context.scratch / "traces.jsonl", context.out / "samples.jsonl"
        self.engine.generate(
            problems,
            self.sampling,
            destination=traces,
            scratch=context.scratch / "generate",
            seed=context.seed,
            progress=context.progress,
            model=context.path("model"),
        )
        with context.progress("grading", len(problems) * self.sampling.samples, "samples") as progress:
            write_jsonl(samples, grade_rows(read_jsonl(traces), self.grader, self.workers, progress))
        scores = score(
            read_jsonl(samples),
            problems,
            where=str(samples),
            sampling=self.sampling.model_dump(mode="json"),
            grader=key_config(self.grader),
            equivalent=partial(self._equivalent, context, {problem["id"]: problem for problem in problems}),
            resamples=self.resamples,
            seed=context.seed,
        )
        write_json(context.out / "scores.json", scores.model_dump(mode="json"))
        return {
            "problems": scores.problems,
            "samples": scores.problems * scores.n,
            "unparseable_gold": scores.unparseable_gold,
            "pass@1": scores.metrics["pass@1"].value,
            f"pass@{scores.n}": scores.metrics[f"pass@{scores.n}"].value,
        }

    def _equivalent(
        self, context: StageContext, problems: Mapping[str, Mapping[str, Any]], asked: Sequence[tuple[str, str, str]]
    ) -> Iterator[bool]:
        questions = ((problems[problem], one, other) for problem, one, other in asked)
        with context.progress("comparing answers", len(asked), "pairs") as progress:
            for same in agreements(questions, self.grader, self.workers):
                progress.advance()
                yield same
