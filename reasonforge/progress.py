"""Progress of a stage: a line per interval in its log, and its latest state in a small file.

The launcher and `reasonforge status` read the file; on a terminal they draw a bar from it (`reasonforge.display`).
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Self

LOG_INTERVAL_S = 10.0
STATE_INTERVAL_S = 0.25


class Progress:
    """Counts units of work. Use it as a context manager so that the last state is always written.

    Args:
        title: what is being done, in a few words ("sampling", "training").
        total: units in all; 0 where that is not known.
        unit: the unit's name, plural ("samples", "steps").
        state_file: where the latest state goes as one JSON object; None writes none.
    """

    def __init__(self, title: str, total: int, unit: str, state_file: Path | None = None):
        self.title, self.total, self.unit, self.state_file = title, total, unit, state_file
        self.done, self.note = 0, ""
        self._skipped = 0
        self._started = time.monotonic()
        self._logged = self._stated = 0.0

    def __enter__(self) -> Self:
        self._emit(force=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._emit(force=True)

    def resume(self, done: int) -> None:
        """Count units that an earlier attempt did: they are done, but say nothing about the rate."""
        self.done = self._skipped = done
        self._emit()

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count `units` more, with an optional remark for people ("loss 0.41")."""
        self.set(self.done + units, note)

    def set(self, done: int, note: str = "") -> None:
        """Say how many units are done now."""
        self.done = done
        self.note = note or self.note
        self._emit()

    @property
    def rate(self) -> float:
        """Units a second in this attempt."""
        return (self.done - self._skipped) / max(time.monotonic() - self._started, 1e-9)

    def _emit(self, force: bool = False) -> None:
        now = time.monotonic()
        if self.state_file and (force or now - self._stated >= STATE_INTERVAL_S):
            self._stated = now
            state = {
                "title": self.title,
                "done": self.done,
                "total": self.total,
                "unit": self.unit,
                "rate": round(self.rate, 3),
                "note": self.note,
                "time": round(time.time(), 3),
            }
            temporary = self.state_file.with_suffix(".tmp")
            temporary.write_text(json.dumps(state), encoding="utf-8")
            os.replace(temporary, self.state_file)
        if force or now - self._logged >= LOG_INTERVAL_S:
            self._logged = now
            sys.stderr.write(self._line() + "\n")
            sys.stderr.flush()

    def _line(self) -> str:
        left = max(self.total - self.done, 0)
        eta = f", {duration(left / self.rate)} left" if left and self.rate > 0 else ""
        note = f" | {self.note}" if self.note else ""
        of = f"/{self.total}" if self.total else ""  # 0: not known
        return f"{self.title}: {self.done}{of} {self.unit}, {self.rate:.1f}/s{eta}{note}"


def duration(seconds: float) -> str:
    """Seconds as "12.3 s", "4 min 05 s" or "3 h 12 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02d} min" if hours else f"{minutes} min {rest:02d} s"
