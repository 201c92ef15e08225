"""The stage `problems`: problems with checkable answers, split into train and evaluation without overlap.

Its artifact holds `train.jsonl` and `eval.jsonl`.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

from data_prep.sources.problems import Source
from reasonforge.artifacts import ArtifactKind
from reasonforge.files import write_jsonl
from recipes.stage import Stage, StageContext


class ProblemsStage(Stage):
    """Make or read problems."""

    kind: ClassVar[ArtifactKind] = "problems"

    type: Literal["problems"] = "problems"
    source: Source
    """Where the problems come from."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The source's modules."""
        return self.source.needs

    @property
    def external_files(self) -> tuple[Path, ...]:
        """Files of the user's whose content decides the output."""
        return self.source.external_files

    def run(self, context: StageContext) -> dict[str, Any]:
        """Write both splits; there is nothing to resume, since it takes seconds."""
        found = self.source.make(context.seed)
        write_jsonl(context.out / "train.jsonl", found.train)
        write_jsonl(context.out / "eval.jsonl", found.eval)
        return dict(found.counts)
