"""The geometry of the page's charts: positions in per cent and paths in a box of 1000 by 1000.

The template stretches the box to the width of the screen and lays text over it in its natural size, so a chart is as
readable on a telephone as on a wide screen. `page` makes the charts; nothing here knows HTML.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from recipes.evaluation.scoring import Interval
from recipes.report.curves import Curve, smoothed, thinned
from recipes.report.wording import interval, percent

_BOX = 1000.0
_LABEL_GAP = 8.5
"""Least distance of two labels at the end of lines, in per cent of a chart's height."""


@dataclass(frozen=True)
class Axis:
    """A scale from values to 0..1, with labelled ticks: (position in per cent, label)."""

    low: float
    high: float
    labels: Sequence[tuple[float, str]]
    scale: Callable[[float], float] = float

    def at(self, value: float) -> float:
        """Where a value lies, 0..1."""
        low, high = self.scale(self.low), self.scale(self.high)
        return (self.scale(value) - low) / (high - low) if high > low else 0.5

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Ticks as (position in per cent from the low end, label)."""
        return [(round(100 * self.at(value), 2), label) for value, label in self.labels]


@dataclass(frozen=True)
class Stroke:
    """A line: `tone` is the model's colour number, `style` "solid" or "faint"."""

    tone: int
    path: str
    style: str = "solid"


@dataclass(frozen=True)
class Dot:
    """A point of a line with its remark; positions in per cent from the left and the top."""

    tone: int
    left: float
    top: float
    tip: str


@dataclass(frozen=True)
class EndLabel:
    """A text beside the end of a line; `top` in per cent."""

    tone: int
    top: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A chart ready to be laid out."""

    title: str
    subtitle: str
    x: Axis
    y: Axis
    strokes: list[Stroke] = field(default_factory=list)
    bands: list[Stroke] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    labels: list[EndLabel] = field(default_factory=list)


@dataclass(frozen=True)
class IntervalRow:
    """A value with its interval on a shared axis: positions in per cent from the left, and its texts."""

    tone: int
    name: str
    at: float
    low: float
    high: float
    value_text: str
    interval_text: str
    muted: bool = False


def share_axis() -> Axis:
    """Shares from 0 to 1, labelled in per cent."""
    return Axis(0.0, 1.0, [(tick / 4, f"{25 * tick}") for tick in range(5)])


def linear_axis(values: Sequence[float], *, zero: bool = False, most: int = 5) -> Axis:
    """An axis of round ticks that holds all values; from zero where they come near it or `zero` asks for it."""
    low, high = min(values), max(values)
    if zero or 0 < low < 0.4 * high:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-12:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    step = _round_step((high - low) / most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9) + (step / 10 ** math.floor(math.log10(step)) == 2.5))
    ticks = [(tick * step, _signed(f"{tick * step:,.{decimals}f}")) for tick in range(first, last + 1)]
    return Axis(first * step, last * step, ticks)


def size_chart(
    title: str,
    subtitle: str,
    series: Mapping[str, Mapping[int, Interval]],
    tones: Mapping[str, int],
) -> Chart:
    """A metric against k on a logarithmic axis, a line and a band for each model."""
    sizes = sorted({k for points in series.values() for k in points})
    x = Axis(sizes[0], sizes[-1], [(k, str(k)) for k in sizes], scale=math.log2)
    y = share_axis()
    strokes, bands, dots, ends = [], [], [], []
    for name, points in series.items():
        tone = tones[name]
        ordered = sorted(points.items())
        strokes.append(Stroke(tone, _path(x, y, [(k, found.value) for k, found in ordered])))
        edge = [(k, found.high) for k, found in ordered] + [(k, found.low) for k, found in reversed(ordered)]
        bands.append(Stroke(tone, _path(x, y, edge) + "Z"))
        for k, found in ordered:
            tip = f"{name}, k = {k}: {percent(found.value)} {interval(found)}"
            dots.append(Dot(tone, _per_cent(x.at(k)), _per_cent(1 - y.at(found.value)), tip))
        ends.append((tone, 1 - y.at(ordered[-1][1].value), name))
    return Chart(title, subtitle, x, y, strokes, bands, dots, _spread(ends))


def curve_chart(curve: Curve, tone: int) -> Chart:
    """A training curve: what was logged, faint, and smoothed, with its last smoothed value."""
    raw = thinned(curve.points)
    smooth = smoothed(raw)
    steps = [step for step, _ in raw]
    x = _step_axis(steps[0], steps[-1])
    y = linear_axis([value for _, value in raw])
    last = smooth[-1][1]
    strokes = [Stroke(tone, _path(x, y, raw), "faint"), Stroke(tone, _path(x, y, smooth))]
    end = EndLabel(tone, _per_cent(1 - y.at(last)), _significant(last))
    return Chart(curve.title, curve.unit, x, y, strokes, labels=[end])


def interval_row(
    axis: Axis, tone: int, name: str, found: Interval, texts: tuple[str, str], muted: bool = False
) -> IntervalRow:
    """A dot with its interval on an axis."""
    at, low, high = (_per_cent(axis.at(value)) for value in (found.value, found.low, found.high))
    return IntervalRow(tone, name, at, low, high, *texts, muted)


def _step_axis(first: float, last: float) -> Axis:
    """Training steps, with ticks inside the axis only: the first and last steps are seldom round."""
    round_ticks = linear_axis([first, last], most=4).labels
    return Axis(first, last, [(value, label) for value, label in round_ticks if first <= value <= last])


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))


def _path(x: Axis, y: Axis, points: Sequence[tuple[float, float]]) -> str:
    places = (f"{_BOX * x.at(a):.1f} {_BOX * (1 - y.at(b)):.1f}" for a, b in points)
    return "M" + "L".join(places)


def _spread(ends: Sequence[tuple[int, float, str]]) -> list[EndLabel]:
    """Labels at their lines' ends, moved apart where they would overlap, and none below the chart."""
    ordered = sorted(ends, key=lambda end: end[1])
    tops: list[float] = []
    for _, share, _ in ordered:
        tops.append(max(100 * share, tops[-1] + _LABEL_GAP) if tops else 100 * share)
    limit = 100.0
    for index in reversed(range(len(tops))):
        tops[index] = min(tops[index], limit)
        limit = tops[index] - _LABEL_GAP
    return [EndLabel(tone, round(top, 2), text) for (tone, _, text), top in zip(ordered, tops, strict=True)]


def _per_cent(share: float) -> float:
    return round(100 * share, 2)


def _significant(value: float) -> str:
    """Three significant digits, without an exponent for what people read."""
    if value == 0 or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return _signed(f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}")


def _signed(text: str) -> str:
    return text.replace("-", "−").replace(",", "\u202f")
