"""The layout of a run directory: one class owns every path, so that none is spelled twice."""

import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reasonforge.artifacts import RECEIPT
from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl


class RunDirectory:
    """`runs/NAME/`: the resolved recipe, the plan, published stages, work in progress, logs and events."""

    def __init__(self, root: Path):
        self.root = root.absolute()

    @property
    def name(self) -> str:
        """The run's name."""
        return self.root.name

    @property
    def recipe(self) -> Path:
        """The resolved recipe, as JSON."""
        return self.root / "recipe.json"

    @property
    def plan(self) -> Path:
        """The plan that the run follows, as JSON."""
        return self.root / "plan.json"

    @property
    def events(self) -> Path:
        """What happened, a JSON object a line."""
        return self.root / "events.jsonl"

    @property
    def accounting(self) -> Path:
        """What the stages took of a cluster, written by its launcher before the report."""
        return self.root / "accounting.json"

    @property
    def lock(self) -> Path:
        """Held by the launcher that runs here."""
        return self.root / ".lock"

    @property
    def report_link(self) -> Path:
        """A link to the published report, so that people find it at once."""
        return self.root / "report"

    def stage(self, stage: str) -> Path:
        """Where a stage's artifact is published."""
        return self.root / "stages" / stage

    def work(self, stage: str) -> Path:
        """Where a stage works; one directory below it for each stage key."""
        return self.root / "work" / stage

    def stage_lock(self, stage: str, part: int | None = None) -> Path:
        """Held by the process that does the stage, or a part of it; shared by those that do parts."""
        return self.root / "work" / f"{_with_part(stage, part)}.lock"

    def log(self, stage: str, part: int | None = None) -> Path:
        """A stage's (or a part's) standard output and error, all attempts one after the other."""
        return self.root / "logs" / f"{_with_part(stage, part)}.log"

    def progress(self, stage: str, part: int | None = None) -> Path:
        """A stage's (or a part's) latest progress, a JSON object."""
        return self.root / "logs" / f"{_with_part(stage, part)}.progress.json"

    def record(self, event: str, stage: str | None = None, **details: Any) -> None:
        """Append an event in one write, so that several processes can append at once. OSError where no room is left."""
        entry = {"time": round(time.time(), 3), "event": event, **({"stage": stage} if stage else {}), **details}
        self.events.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.events, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        line = (json.dumps(entry) + "\n").encode()
        try:
            written = os.write(descriptor, line)
            if written < len(line):  # the disk is full: half a line would spoil the others
                end = os.lseek(descriptor, 0, os.SEEK_CUR)
                if os.fstat(descriptor).st_size == end:
                    os.ftruncate(descriptor, end - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.events))
        finally:
            os.close(descriptor)

    def read_progress(self, stage: str) -> dict[str, Any] | None:
        """The latest progress of a stage's present or last attempt; None where it has said nothing yet."""
        try:
            progress: dict[str, Any] = json.loads(self.progress(stage).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return progress

    def published(self) -> list[Path]:
        """The directories of all published artifacts, by name."""
        return sorted(path.parent for path in self.root.glob(f"stages/*/{RECEIPT}"))

    def logged_stages(self) -> list[str]:
        """The stages that have a log."""
        return sorted(path.stem for path in self.root.glob("logs/*.log"))

    def read_events(self) -> Iterator[dict[str, Any]]:
        """All events so far, oldest first; nothing where the run has not started."""
        if self.events.exists():
            yield from read_jsonl(self.events)


def find_run(name: str, runs_dir: Path) -> RunDirectory:
    """A run by its name below a directory of runs, or by its path. Raises RequestError where there is none."""
    for root in (runs_dir / name, Path(name)):
        if RunDirectory(root).recipe.exists():
            return RunDirectory(root)
    there = sorted(path.parent.name for path in runs_dir.glob("*/recipe.json"))
    raise RequestError(
        str(runs_dir / name),
        "no such run",
        f"there are: {', '.join(there)}" if there else "start one with: reasonforge run RECIPE",
    )


def _with_part(stage: str, part: int | None) -> str:
    return stage if part is None else f"{stage}.part-{part:05d}"
