"""`traces`: traces that others made, from files or the Hugging Face Hub, in place of those of a stage `generate`.

Its artifact holds `traces.jsonl`, the rows of a problem together.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

from data_prep.sources.rows import count_rows
from data_prep.sources.traces import FileTraces
from reasonforge.artifacts import ArtifactKind
from recipes.stage import Stage, StageContext


class TracesStage(Stage):
    """Read traces."""

    kind: ClassVar[ArtifactKind] = "traces"

    type: Literal["traces"] = "traces"
    source: FileTraces
    """Where the traces come from."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The source's modules."""
        return self.source.needs

    @property
    def external_files(self) -> tuple[Path, ...]:
        """Files of the user's whose content decides the output."""
        return self.source.external_files

    def run(self, context: StageContext) -> dict[str, Any]:
        """Read the rows once, in their order; a kill begins it again, since it is as fast as copying."""
        total = sum(count_rows(Path(path)) for path in self.source.paths)
        with context.progress("reading", total, "traces") as progress:
            return self.source.write(context.out, context.scratch, progress)
