"""The annotation `difficulty`: how many of a problem's traces are right, and what that makes the problem."""

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from data_prep.annotation.base import Annotation, Row
from data_prep.annotation.streaming import problem_of
from reasonforge.errors import RequestError

UNGRADABLE = ("unparseable_gold", "unparseable_verdict")
"""Verdicts that say nothing of the response: the right answer, or the judge's own word, could not be read."""


class DifficultyAnnotation(Annotation):
    """Adds three columns, the same for all traces of a problem:

    - `graded_traces`: how many of them have a verdict that counts (int). A timeout and an answer that cannot be read
      count as failures; a right answer or a judge's verdict that cannot be read does not count.
    - `pass_rate`: the share of these that are correct (0..1); null with fewer than `min_traces`.
    - `difficulty`: the level of the pass rate; null with fewer than `min_traces`.

    It is the difficulty for whoever wrote the traces: of several teachers, for all of them together.
    """

    columns: ClassVar[tuple[str, ...]] = ("problem_id", "verdict")
    adds: ClassVar[tuple[str, ...]] = ("graded_traces", "pass_rate", "difficulty")

    type: Literal["difficulty"] = "difficulty"
    levels: dict[str, float] = Field(default={"hard": 0.25, "medium": 0.75, "easy": 1.0})
    """The levels, hardest first, each with the largest pass rate that is in it; the last must be 1."""
    min_traces: int = Field(default=4, ge=1)
    """Graded traces that a problem needs. The standard error of a pass rate near 0.5 is 0.25 with 4 traces, 0.125 with
    16."""

    @field_validator("levels")
    @classmethod
    def _check(cls, levels: dict[str, float]) -> dict[str, float]:
        bounds = list(levels.values())
        if not bounds or any(a >= b for a, b in pairwise([-1e-9, *bounds])) or bounds[-1] != 1:
            told = ", ".join(f"{name}: {bound:g}" for name, bound in levels.items()) or "none"
            raise ValueError(f"found {told}; levels need rising pass rates from 0 on, the last of them 1")
        return levels

    def look(self, rows: Sequence[Row]) -> list[Row]:
        """Count the verdicts of each problem."""
        found: list[Row] = []
        for problem, group in groupby(rows, problem_of):
            verdicts = []
            for row in group:
                if problem is None or not isinstance(row.get("verdict"), str):
                    lacking = "problem_id" if problem is None else "verdict"
                    raise RequestError(f"row {row.get('id')}", f"no `{lacking}`, so the problem's pass rate is unknown")
                verdicts.append(row["verdict"])
            found += [self._of(verdicts)] * len(verdicts)
        return found

    def _of(self, verdicts: Sequence[str]) -> Row:
        graded = [verdict for verdict in verdicts if verdict not in UNGRADABLE]
        if len(graded) < self.min_traces:
            return {"graded_traces": len(graded), "pass_rate": None, "difficulty": None}
        rate = graded.count("correct") / len(graded)
        level = next(name for name, bound in self.levels.items() if rate <= bound)
        return {"graded_traces": len(graded), "pass_rate": rate, "difficulty": level}
