"""What a stage is: a typed configuration that names its input artifacts and can make its one output artifact."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

from reasonforge.artifacts import Artifact, ArtifactKind
from reasonforge.config import Operational, Strict
from reasonforge.errors import RequestError
from reasonforge.progress import Progress
from recipes.ranks import ALONE, Rank
from recipes.resources import Resources


@dataclass(frozen=True)
class InputOf:
    """The kind of artifact that a field of a stage's inputs takes: `Annotated[str, InputOf("traces")]`."""

    kind: ArtifactKind
    others: tuple[ArtifactKind, ...] = ()
    """What it takes as well."""


@dataclass(frozen=True)
class InputRef:
    """One input as a recipe wires it. A group of inputs (`scores: {base: evaluate-base}`) gives `scores.base`."""

    name: str
    stage: str
    kind: ArtifactKind
    others: tuple[ArtifactKind, ...] = ()
    """Kinds that fit as well."""


@dataclass(frozen=True)
class StageContext:
    """All that a stage may touch while it runs."""

    stage: str
    """The stage's name in the recipe."""
    seed: int
    """The recipe's seed."""
    inputs: Mapping[str, Artifact]
    """Input artifacts by name; members of a group as `group.member`."""
    out: Path
    """Empty at the start of every attempt; what is here at the end is published."""
    scratch: Path
    """Survives a kill: finished shards, journals, checkpoints. Deleted once the stage is published."""
    progress_file: Path
    """Where the latest progress goes."""
    accounting: Path | None = None
    """Where a launcher writes what the stages took of a cluster (`recipes.accounting`); on one machine none does."""
    rank: Rank = ALONE
    """Which of the stage's processes this is; all but the first leave `out` and the progress alone."""

    def path(self, name: str) -> Path:
        """The directory of an input artifact."""
        return self.inputs[name].path

    def group(self, name: str) -> dict[str, Artifact]:
        """The members of a group of inputs, by their name in the group."""
        prefix = f"{name}."
        return {key[len(prefix) :]: value for key, value in self.inputs.items() if key.startswith(prefix)}

    def progress(self, title: str, total: int, unit: str) -> Progress:
        """A progress reporter for one piece of the work."""
        return Progress(title, total, unit, self.progress_file)


class Stage(Strict):
    """The base of all stages. A subclass has a literal `type`, its `inputs`, its options, and `run`.

    `version` is part of the stage key: raise it when the same configuration would give another output.
    """

    kind: ClassVar[ArtifactKind]
    version: ClassVar[int] = 1

    divisible: ClassVar[bool] = False
    """Whether `run_part` can do a part of the work, so that an array of jobs can share it."""

    type: str
    """Which stage this is; a literal in every subclass."""
    resources: Annotated[Resources, Operational()] = Resources()
    """What it asks of a cluster; on one machine it takes what there is."""

    @property
    def parallel(self) -> bool:
        """Whether it runs as one process for each GPU, on any number of nodes; otherwise as one process on one node."""
        return False

    @property
    def environment(self) -> str | None:
        """The name of the Python environment that its work needs ("nemo", "bridge"); None for reasonforge's own."""
        return None

    @property
    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """The importable modules that the stage's work needs, for `reasonforge doctor` ("torch", "trl")."""

    @property
    def external_files(self) -> tuple[Path, ...]:
        """Files from outside the run whose content decides the output; they are part of the stage key."""
        return ()

    @abstractmethod
    def run(self, context: StageContext) -> dict[str, Any]:
        """Do the work: write the artifact's files into `context.out` and return the counts for its receipt.

        It may be killed at any instant and called again: what it needs to go on, it keeps in `context.scratch`.
        A parallel stage is called in every process at once; they meet before any of them looks into the scratch.
        Raises RequestError for bad input, StageError where the work cannot be done.
        """

    def run_part(self, context: StageContext, part: int) -> None:
        """Do part `part` (from 0) of `resources.array` parts of the work into `context.scratch`, for `run` to finish.

        It may be killed at any instant and called again, and other parts are done at the same time.
        Raises RequestError where the stage cannot be divided.
        """
        raise RequestError(f"stage {context.stage}", f"a {self.type} stage cannot be divided", "leave out the array")

    def check_inputs(self, stages: Mapping[str, "Stage"]) -> None:
        """Raise ValueError where a stage that makes an input does not make what this one's options ask for.

        Args:
            stages: all of the recipe, by name; each input is made by one of them, and is of the right kind.
        """

    def input_refs(self) -> Iterator[InputRef]:
        """The input artifacts that this stage names, optional ones only where they are given."""
        inputs = getattr(self, "inputs", None)
        if inputs is None:
            return
        for name, field in type(inputs).model_fields.items():
            mark = _mark_of(field.annotation, field.metadata)
            value = getattr(inputs, name)
            members = value.items() if isinstance(value, Mapping) else ()
            yield from (InputRef(f"{name}.{member}", stage, mark.kind, mark.others) for member, stage in members)
            if isinstance(value, str):
                yield InputRef(name, value, mark.kind, mark.others)


def _mark_of(annotation: Any, metadata: list[Any]) -> InputOf:
    for item in metadata:
        if isinstance(item, InputOf):
            return item
    for argument in get_args(annotation):
        marks = list(getattr(argument, "__metadata__", ()))
        if marks or get_args(argument):
            return _mark_of(argument, marks)
    raise TypeError(f"{annotation} has no InputOf")
