"""Training curves from the `metrics.jsonl` of a checkpoint: what was logged that is worth a look, raw and smoothed."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasonforge.files import read_jsonl

Points = list[tuple[float, float]]
"""(step, value), steps rising."""

_MOST_POINTS = 400
_FEWEST_SMOOTHED = 30


@dataclass(frozen=True)
class Curve:
    """One logged quantity over the steps of a training."""

    key: str
    title: str
    unit: str
    points: Points


_REINFORCED = (
    ("reward", "Reward", "mean of the batch"),
    ("completions/mean_length", "Completion length", "tokens"),
    ("completions/clipped_ratio", "Truncated completions", "share"),
    ("entropy", "Entropy", "nats a token"),
    ("kl", "KL to the reference", "nats a token"),
)
_SUPERVISED = (("loss", "Loss", "nats a token"),)


def read_curves(checkpoint: Path) -> list[Curve]:
    """The curves of a checkpoint's training, none where it has no metrics. The names are TRL's log names.

    What was logged once only, or as 0 throughout (the KL of a training without a reference), is no curve.
    """
    path = checkpoint / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = list(read_jsonl(path))
    shown = _REINFORCED if any("reward" in row for row in rows) else _SUPERVISED
    curves = [Curve(key, title, unit, _points(rows, key)) for key, title, unit in shown]
    return [curve for curve in curves if len(curve.points) > 1 and any(value for _, value in curve.points)]


def thinned(points: Points) -> Points:
    """At most some hundred points, each the mean of its neighbours, so that the page stays light."""
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(len(points) / _MOST_POINTS)
    bins = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in bins]


def smoothed(points: Points) -> Points:
    """Local straight-line fits under a Gaussian window (Cleveland 1979): no lag, and no pull towards the middle at the
    ends. A short curve is left as it is. For thinned points: the time is quadratic.
    """
    if len(points) < _FEWEST_SMOOTHED:
        return points
    width = len(points) / 40
    reach = math.ceil(3 * width)
    window = [math.exp(-((offset / width) ** 2) / 2) for offset in range(reach + 1)]
    fitted = []
    for index, (step, _) in enumerate(points):
        near = range(max(0, index - reach), min(len(points), index + reach + 1))
        fitted.append((step, _fit_at(index, [(other, points[other][1], window[abs(other - index)]) for other in near])))
    return fitted


def _fit_at(x: int, weighted: list[tuple[int, float, float]]) -> float:
    """The value at x of the straight line through (place, value, weight)."""
    total = sum(weight for _, _, weight in weighted)
    middle = sum(weight * place for place, _, weight in weighted) / total
    mean = sum(weight * value for _, value, weight in weighted) / total
    spread = sum(weight * (place - middle) ** 2 for place, _, weight in weighted)
    slope = sum(weight * (place - middle) * value for place, value, weight in weighted) / spread
    return mean + slope * (x - middle)


def _points(rows: list[dict[str, Any]], key: str) -> Points:
    found = {float(row["step"]): row[key] for row in rows if key in row and "step" in row}
    return [(step, float(value)) for step, value in sorted(found.items()) if _is_finite(value)]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
