"""The funnel: how many rows each step of the curation saw and dropped, and why. `curation` fills it in."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

EXAMPLES = 3


class Funnel:
    """Counts by step, in the order of the steps. Of each step out = in - dropped, and its out is the next one's in."""

    def __init__(self, steps: Iterable[str]):
        self._dropped: dict[str, Counter[str]] = {step: Counter() for step in steps}
        self._examples: dict[str, list[str]] = {step: [] for step in self._dropped}
        self._verdicts: Counter[str] = Counter()
        self._rows = self._tokens = self._longest = 0
        self._lengths: Counter[int] = Counter()

    def enter(self, verdict: str = "") -> None:
        """Count a row that goes in, with its verdict."""
        self._rows += 1
        self._verdicts[verdict] += 1

    def count_tokens(self, tokens: Iterable[int]) -> None:
        """Say how many tokens the responses of the rows have that were kept in the end, as far as that is known."""
        for count in tokens:
            self._lengths[count.bit_length()] += 1
            self._tokens += count
            self._longest = max(self._longest, count)

    def drop(self, step: str, reason: str, row_id: str) -> None:
        """Count the row that entered last as dropped by a step."""
        self._dropped[step][reason] += 1
        if len(self._examples[step]) < EXAMPLES:
            self._examples[step].append(row_id)

    @property
    def kept(self) -> int:
        """Rows that no step dropped."""
        return self._rows - sum(dropped.total() for dropped in self._dropped.values())

    @property
    def worst(self) -> tuple[str, str, int]:
        """The step that dropped most, its commonest reason, and how many rows it dropped; the first of equals."""
        step = max(self._dropped, key=lambda name: self._dropped[name].total())
        reasons = _ordered(self._dropped[step])
        return step, next(iter(reasons), ""), sum(reasons.values())

    def to_json(self, verdicts: Iterable[str]) -> dict[str, Any]:
        """The funnel as `funnel.json` holds it; each of `verdicts` is counted, also where it is 0, and all others."""
        steps = []
        rows = self._rows
        for step, dropped in self._dropped.items():
            left = rows - dropped.total()
            steps.append({"step": step, "in": rows, "out": left, "dropped": _ordered(dropped)})
            rows = left
        others = self._verdicts.keys() - {""}  # rows that nobody has graded have none
        return {
            "steps": steps,
            "verdicts": {verdict: self._verdicts[verdict] for verdict in dict.fromkeys([*verdicts, *sorted(others)])},
            "examples": {step: ids for step, ids in self._examples.items() if ids},
            **({"completion_tokens": self._histogram()} if self._lengths else {}),
        }

    def _histogram(self) -> dict[str, Any]:
        """Rows by the tokens of their responses; bin i holds lengths in [edges[i], edges[i + 1]), by powers of two."""
        low, high = min(self._lengths), max(self._lengths)
        return {
            "rows": self._lengths.total(),
            "total": self._tokens,
            "longest": self._longest,
            "edges": [1 << bits >> 1 for bits in range(low, high + 2)],
            "counts": [self._lengths[bits] for bits in range(low, high + 1)],
        }


def _ordered(counts: Counter[str]) -> dict[str, int]:
    """The largest first, equals by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
