"""The funnel of a curated dataset: what each step dropped, why, and a few of the dropped rows.

`content` reads it for the page, the JSON and the Markdown.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasonforge.errors import RequestError
from reasonforge.files import read_json, read_jsonl


@dataclass(frozen=True)
class Step:
    """One step: rows in and out, dropped rows by reason, and examples of them (rows of `dropped.jsonl`)."""

    name: str
    rows_in: int
    rows_out: int
    dropped: dict[str, int]
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class Funnel:
    """All steps in order, and the verdicts of verification."""

    steps: list[Step]
    verdicts: dict[str, int]

    @property
    def rows_in(self) -> int:
        """Rows before the first step."""
        return self.steps[0].rows_in if self.steps else 0

    @property
    def rows_out(self) -> int:
        """Rows after the last step."""
        return self.steps[-1].rows_out if self.steps else 0

    def as_json(self) -> dict[str, Any]:
        """As `funnel.json` has it."""
        return {
            "steps": [{"step": s.name, "in": s.rows_in, "out": s.rows_out, "dropped": s.dropped} for s in self.steps],
            "verdicts": self.verdicts,
            "examples": {s.name: [row["id"] for row in s.examples] for s in self.steps if s.examples},
        }


def read_funnel(dataset: Path) -> Funnel:
    """Read a dataset artifact's funnel, and from its dropped rows only the examples."""
    path = dataset / "funnel.json"
    body = read_json(path)
    try:
        wanted = {(step, row) for step, rows in body.get("examples", {}).items() for row in rows}
        examples = _examples(dataset / "dropped.jsonl", wanted) if wanted else {}
        steps = [
            Step(step["step"], step["in"], step["out"], dict(step["dropped"]), examples.get(step["step"], []))
            for step in body["steps"]
        ]
        return Funnel(steps, dict(body.get("verdicts", {})))
    except KeyError as error:
        raise RequestError(str(path), f"no {error.args[0]!r}", "make the dataset again with --force STAGE") from None


def _examples(path: Path, wanted: set[tuple[str, str]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    left = set(wanted)
    for row in read_jsonl(path):
        mark = (row["dropped_by"], row["id"])
        if mark in left:
            left.remove(mark)
            found.setdefault(row["dropped_by"], []).append(row)
            if not left:
                break
    return found
