"""The stage `generate`: a teacher answers problems with chains of thought.

Its artifact holds `traces.jsonl`, by problem and then by sample.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import model_validator

from data_prep.generation import Engine, HFEngine
from data_prep.generation.sampling import Sampling
from reasonforge.artifacts import ArtifactKind
from reasonforge.config import Strict
from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl
from recipes.stage import InputOf, Stage, StageContext


class GenerateInputs(Strict):
    """What goes in."""

    problems: Annotated[str, InputOf("problems")]
    """The stage that made the problems."""
    teacher: Annotated[str, InputOf("hf_checkpoint")] | None = None
    """The stage that made the teacher, for an engine of type hf; null where the engine names its own."""


class GenerateStage(Stage):
    """Sample a teacher's responses."""

    kind: ClassVar[ArtifactKind] = "traces"

    type: Literal["generate"] = "generate"
    inputs: GenerateInputs
    """The problems, and the teacher where another stage makes it."""
    split: Literal["train", "eval"] = "train"
    """Which problems are asked. Traces of evaluation problems are not for training."""
    sampling: Sampling = Sampling()
    """How many responses a problem gets, and how they are drawn."""
    engine: Engine
    """Who answers."""

    @model_validator(mode="after")
    def _check_teacher(self) -> Self:
        teacher = self.inputs.teacher
        if not isinstance(self.engine, HFEngine):
            if teacher is not None:
                raise ValueError(
                    f"inputs.teacher is {teacher!r}, but an engine of type {self.engine.type} takes no model; "
                    "remove inputs.teacher or set engine.type to hf"
                )
        elif (teacher is None) == (self.engine.model_path is None):
            found = "neither is" if teacher is None else "both are"
            raise ValueError(
                f"the model comes from inputs.teacher or from engine.model_path, but {found} given; give one"
            )
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """The engine's modules."""
        return self.engine.needs

    @property
    def external_files(self) -> tuple[Path, ...]:
        """The files of a teacher that the user names by its directory."""
        return self.engine.external_files if isinstance(self.engine, HFEngine) else ()

    def run(self, context: StageContext) -> dict[str, Any]:
        """Let the engine sample; what it finished in earlier attempts is in the scratch directory."""
        source = context.path("problems") / f"{self.split}.jsonl"
        problems = list(read_jsonl(source))
        if not problems:
            raise RequestError(str(source), "no problems to answer", "ask the problems stage for some")
        return self.engine.generate(
            problems,
            self.sampling,
            destination=context.out / "traces.jsonl",
            scratch=context.scratch,
            seed=context.seed,
            progress=context.progress,
            model=context.path("teacher") if self.inputs.teacher is not None else None,
        )
