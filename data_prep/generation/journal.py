"""A journal of finished samples: one line each, appended and flushed, so that a killed job repeats nothing.

The `openai` engine keeps its answers here, where each has cost a request. Only keys and offsets are held in memory.
"""

import json
from pathlib import Path
from typing import Any, Self

from reasonforge.errors import RequestError
from reasonforge.files import jsonl_line


class Journal:
    """An append-only jsonl file of entries by key. A last line torn by a kill is cut off when it is opened.

    Raises RequestError, with the line, for a whole line that is not one of its entries.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._file = open(path, "r+b")  # noqa: SIM115 - closed by __exit__
        self._offsets: dict[str, int] = {}
        self._end = 0
        self._scan()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def append(self, key: str, entry: dict[str, Any]) -> None:
        """Add an entry; once this returns, a kill of the process does not lose it."""
        line = jsonl_line({"key": key, **entry}).encode()
        self._file.seek(self._end)
        self._file.write(line)
        self._file.flush()
        self._offsets[key] = self._end
        self._end += len(line)

    def read(self, key: str) -> dict[str, Any]:
        """The entry of a key, from the disk. Raises KeyError where there is none."""
        self._file.seek(self._offsets[key])
        entry: dict[str, Any] = json.loads(self._file.readline())
        return entry

    def _scan(self) -> None:
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                self._file.truncate(self._end)
                return
            try:
                self._offsets[json.loads(line)["key"]] = self._end
            except (ValueError, KeyError, TypeError):
                place = f"{self.path}:{number}"
                raise RequestError(place, "not an entry of the journal", "delete this line and run again") from None
            self._end += len(line)
