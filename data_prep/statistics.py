"""What is in a file of rows: counts, verdicts, and how long the texts are. The command `data stats` calls it."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

COUNTED = ("verdict", "finish_reason", "dropped_by", "teacher")
"""Columns of a few values, which are counted by value."""

FIGURES = ("rows", "mean", "longest")


def measure(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The number of rows, of each value of the columns `COUNTED`, and of each other column of texts, how many rows have
    one, its mean length and the longest, in characters. In one pass; what is held does not grow with the rows."""
    total = 0
    values: dict[str, Counter[str]] = {}
    texts: dict[str, list[int]] = {}
    for row in rows:
        total += 1
        for name, value in row.items():
            if name in COUNTED:
                values.setdefault(name, Counter())[str(value)] += 1
            elif isinstance(value, str):
                found = texts.setdefault(name, [0, 0, 0])
                found[0] += 1
                found[1] += len(value)
                found[2] = max(found[2], len(value))
    counted = {
        name: dict(sorted(found.items(), key=lambda item: (-item[1], item[0]))) for name, found in values.items()
    }
    lengths = {
        f"{name} (characters)": dict(zip(FIGURES, (count, round(size / count), longest), strict=True))
        for name, (count, size, longest) in texts.items()
    }
    return {"rows": total, **counted, **lengths}
