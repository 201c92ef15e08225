"""The checkpoints of one training: where they lie, and which of them are whole.

A checkpoint is a directory step-N with what the framework saves in it. A mark is put into it when all processes have
written their part and it is on the disk; one without the mark was cut off by a kill, and is never used.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reasonforge.files import fsync_path

_COMPLETE = "complete"
_KEPT = 2


@dataclass(frozen=True)
class Checkpoints:
    """A folder of checkpoints."""

    folder: Path

    @property
    def final(self) -> Path:
        """The weights after the last step, without the optimizer's state."""
        return self.folder / "final"

    @property
    def is_finished(self) -> bool:
        """Whether the training has come to its end."""
        return (self.final / _COMPLETE).exists()

    def at(self, step: int) -> Path:
        """The checkpoint after a step."""
        return self.folder / f"step-{step:08d}"

    def step(self, checkpoint: Path) -> int:
        """The step after which a checkpoint was saved."""
        return int(checkpoint.name.rpartition("-")[2])

    def last_whole(self) -> Path | None:
        """The newest checkpoint that was saved to its end."""
        return max(self._whole(), key=self.step, default=None)

    def discard_torn(self) -> None:
        """Delete what a kill cut off. Only the first process may, before any other works."""
        for checkpoint in self.folder.glob("*"):
            if not (checkpoint / _COMPLETE).exists():
                shutil.rmtree(checkpoint)

    def completion(self, checkpoint: Path, *, first: bool) -> Callable[[], None]:
        """What is to be called in every process once all have written: the first marks the checkpoint as whole, and
        deletes all but the newest ones."""

        def complete() -> None:
            if not first:
                return
            for path in checkpoint.rglob("*"):
                fsync_path(path)
            (checkpoint / _COMPLETE).touch()
            fsync_path(checkpoint)
            for old in sorted(self._whole(), key=self.step)[:-_KEPT]:
                (old / _COMPLETE).unlink()
                shutil.rmtree(old)

        return complete

    def _whole(self) -> list[Path]:
        return [path for path in self.folder.glob("step-*") if (path / _COMPLETE).exists()]
