"""Several teachers: each answers every problem, one after the other, so that each has all the GPUs to itself.

The `generate` stage calls it as its engine of type `several`; choosing among the answers is curation's work.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from math import lcm
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data_prep.generation.engine import TraceEngine, Work
from data_prep.generation.hf import HFEngine
from data_prep.generation.openai_api import OpenAIEngine
from data_prep.generation.programmatic import ProgrammaticTeacher
from data_prep.generation.sampling import Row, Sampling
from data_prep.generation.vllm import VLLMEngine
from reasonforge.files import read_jsonl

SingleEngine = Annotated[ProgrammaticTeacher | OpenAIEngine | HFEngine | VLLMEngine, Field(discriminator="type")]
"""One teacher."""


class SeveralEngines(TraceEngine):
    """Engines that all answer. Of n samples a problem, teacher t's are numbered t * n to t * n + n - 1."""

    type: Literal["several"] = "several"
    engines: list[SingleEngine] = Field(min_length=2)
    """The teachers, each with its own model; the traces of a problem are in this order."""

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        for number, engine in enumerate(self.engines):
            if isinstance(engine, HFEngine | VLLMEngine) and engine.model_path is None:
                raise ValueError(f"engines[{number}].model_path is not given; each of several names its own model")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """What any of them needs."""
        return tuple(dict.fromkeys(name for engine in self.engines for name in engine.needs))

    @property
    def external_files(self) -> tuple[Path, ...]:
        """Of all of them."""
        return tuple(dict.fromkeys(path for engine in self.engines for path in engine.external_files))

    def block(self, sampling: Sampling) -> int:
        """Problems that have to stay together for each of them."""
        return lcm(*(engine.block(sampling) for engine in self.engines))

    def check(self, sampling: Sampling, gpus: int = 0) -> None:
        """Whether each could work: it has the node to itself."""
        for engine in self.engines:
            engine.check(sampling, gpus)

    def found_licences(self, model: Path | None = None) -> dict[str, str]:
        """Of all of them."""
        return {name: licence for engine in self.engines for name, licence in engine.found_licences().items()}

    def rows(self, work: Work) -> Iterator[Row]:
        """Let each sample in a directory of its own below `scratch`, then all by problem, teacher and sample."""
        parts = []
        for number, engine in enumerate(self.engines):
            place = work.scratch / f"teacher-{number}"
            parts.append(place / "traces.jsonl")
            if not parts[-1].exists():
                engine.generate(
                    work.problems,
                    work.sampling,
                    destination=parts[-1],
                    scratch=place,
                    seed=work.seed,
                    progress=work.progress,
                    first=work.first,
                )
        yield from _merged(parts, work.sampling.samples)


def _merged(parts: Sequence[Path], samples: int) -> Iterator[Row]:
    """The rows of all teachers, problem by problem, with numbers and ids that run on."""
    readers = [read_jsonl(part) for part in parts]
    while groups := [group for reader in readers if (group := list(islice(reader, samples)))]:
        for number, row in enumerate(row for group in groups for row in group):
            yield {**row, "id": f"{row['problem_id']}/{number}", "sample": number}
