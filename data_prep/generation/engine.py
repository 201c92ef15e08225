"""What all engines are: something that samples answers to problems and writes them as traces.

The engines of this package are such; the stages `generate` and `evaluate` and `data generate` ask them.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_prep.generation.sampling import MakeProgress, Row, Sampling, publish_traces
from reasonforge.config import Strict


@dataclass(frozen=True)
class Work:
    """What an engine is asked for."""

    problems: Sequence[Row]
    """With `id`, `prompt` and `answer`; further columns are carried along."""
    sampling: Sampling
    """How many answers a problem gets, and how they are drawn."""
    scratch: Path
    """What is finished stays here, so that the same work goes on after a kill."""
    seed: int
    """Of the run."""
    progress: MakeProgress
    """Makes a progress from a title, a total and a unit."""
    model: Path | None
    """The directory of a model that comes before the engine's own."""
    first: int
    """The number of the first of these problems among all that the stage has; a multiple of the engine's `block`."""


class TraceEngine(Strict):
    """An engine; which type it is, and how it answers, its subclasses say."""

    type: str
    """Which engine this is."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Modules beyond the standard library."""
        return ()

    @property
    def external_files(self) -> tuple[Path, ...]:
        """Files that the user names and whose content decides the output."""
        return ()

    def block(self, sampling: Sampling) -> int:
        """Problems that have to stay together when the work is divided; one, where each stands alone."""
        return 1

    def check(self, sampling: Sampling, gpus: int = 0) -> None:
        """Raises ValueError for sampling that could never work, or on a node with so many GPUs; 0: nobody knows."""
        return

    def found_licences(self, model: Path | None = None) -> dict[str, str]:
        """The licences that models say of themselves, by the models' names, where the options do not say them."""
        return {}

    @abstractmethod
    def rows(self, work: Work) -> Iterable[Row]:
        """The traces, in order. Nothing happens before the first is taken."""

    def generate(
        self,
        problems: Sequence[Row],
        sampling: Sampling,
        *,
        destination: Path,
        scratch: Path,
        seed: int,
        progress: MakeProgress,
        model: Path | None = None,
        first: int = 0,
    ) -> dict[str, Any]:
        """Sample every problem and write the traces by problem, then sample; returns counts.

        Args:
            problems, sampling, scratch, seed, progress, model, first: as `Work` has them.
            destination: the traces' file, published by rename.

        Raises RequestError for problems or models that the engine cannot take, StageError where the work fails.
        """
        return publish_traces(self.rows(Work(problems, sampling, scratch, seed, progress, model, first)), destination)


def own_licence(name: str, given: str | None, source: str) -> dict[str, str]:
    """By a model's name the licence that the card in its directory says; empty where there is none, or one is given.

    The card is README.md, with `license` in its front matter, as the Hub has it (huggingface_hub's `modelcard.md`).
    """
    card = Path(source) / "README.md"
    if given or not card.is_file():
        return {}
    head, opened, rest = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
    if head.strip() or not opened:
        return {}
    try:
        said = yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError:
        return {}
    if not isinstance(said, Mapping):
        return {}
    found = said.get("license")
    if found == "other":
        found = said.get("license_name") or found
    return {name: found} if isinstance(found, str) else {}
