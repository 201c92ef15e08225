"""The stage `generate`: a teacher answers problems with chains of thought.

Its artifact holds `traces.jsonl`, by problem and then by sample.
"""

from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import model_validator

from data_prep.generation import Engine, HFEngine, VLLMEngine
from data_prep.generation.sampling import Sampling, publish_traces
from reasonforge.artifacts import ArtifactKind
from reasonforge.config import Strict
from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl, write_jsonl
from recipes.stage import InputOf, Stage, StageContext


class GenerateInputs(Strict):
    """What goes in."""

    problems: Annotated[str, InputOf("problems")]
    """The stage that made the problems."""
    teacher: Annotated[str, InputOf("hf_checkpoint")] | None = None
    """The stage that made the teacher, for an engine of type hf or vllm; null where the engine names its own."""


class GenerateStage(Stage):
    """Sample a teacher's responses."""

    kind: ClassVar[ArtifactKind] = "traces"
    divisible: ClassVar[bool] = True

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
        if not isinstance(self.engine, HFEngine | VLLMEngine):
            if teacher is not None:
                raise ValueError(
                    f"inputs.teacher is {teacher!r}, but an engine of type {self.engine.type} takes no model; "
                    "remove inputs.teacher or set engine.type to hf or vllm"
                )
        elif (teacher is None) == (self.engine.model_path is None):
            found = "neither is" if teacher is None else "both are"
            raise ValueError(
                f"the model comes from inputs.teacher or from engine.model_path, but {found} given; give one"
            )
        self.engine.check(self.sampling, self.resources.gpus_per_node)
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """The engine's modules."""
        return self.engine.needs

    @property
    def external_files(self) -> tuple[Path, ...]:
        """The files of a teacher that the user names by its directory."""
        return self.engine.external_files

    def run(self, context: StageContext) -> dict[str, Any]:
        """Let the engine sample; what it finished in earlier attempts, or in parts, is in the scratch directory."""
        licences = self.engine.found_licences(self._teacher(context))
        return {**self._run(context), **({"licences": licences} if licences else {})}

    def _run(self, context: StageContext) -> dict[str, Any]:
        destination = context.out / "traces.jsonl"
        parts = self.resources.array
        if parts == 1:
            problems = self._problems(context)
            return self._generate(context, problems, range(len(problems)), destination, context.scratch)
        for part in range(parts):
            self.run_part(context, part)
        rows = chain.from_iterable(read_jsonl(self._part_file(context, part)) for part in range(parts))
        return publish_traces(rows, destination)

    def run_part(self, context: StageContext, part: int) -> None:
        """Answer a run of the problems; parts are cut where the engine's own pieces end, so that none differs."""
        destination = self._part_file(context, part)
        if destination.exists():
            return
        problems = self._problems(context)
        block = self.engine.block(self.sampling)
        blocks, parts = -(-len(problems) // block), self.resources.array
        start, stop = (number * blocks // parts * block for number in (part, part + 1))
        some = range(start, min(stop, len(problems)))
        if some:
            self._generate(context, problems, some, destination, destination.parent)
        else:
            write_jsonl(destination, [])

    def _problems(self, context: StageContext) -> list[dict[str, Any]]:
        source = context.path("problems") / f"{self.split}.jsonl"
        problems = list(read_jsonl(source))
        if not problems:
            raise RequestError(str(source), "no problems to answer", "ask the problems stage for some")
        return problems

    def _teacher(self, context: StageContext) -> Path | None:
        return context.path("teacher") if self.inputs.teacher is not None else None

    def _part_file(self, context: StageContext, part: int) -> Path:
        return context.scratch / f"part-{part:05d}-of-{self.resources.array:05d}" / "traces.jsonl"

    def _generate(
        self, context: StageContext, problems: list[dict[str, Any]], some: range, destination: Path, scratch: Path
    ) -> dict[str, Any]:
        return self.engine.generate(
            problems[some.start : some.stop],
            self.sampling,
            destination=destination,
            scratch=scratch,
            seed=context.seed,
            progress=context.progress,
            model=self._teacher(context),
            first=some.start,
        )
