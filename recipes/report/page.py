"""The HTML page: lays out the content's charts and tables with a template. One file, no script, nothing fetched.

What models wrote is hostile text: the template escapes everything, and the page's own policy forbids scripts and
requests. The report stage calls `render`.
"""

from dataclasses import dataclass
from pathlib import Path

from reasonforge.progress import duration
from recipes.evaluation.scoring import Interval, Scores
from recipes.report import wording
from recipes.report.charts import (
    Axis,
    Chart,
    IntervalRow,
    curve_chart,
    interval_row,
    linear_axis,
    share_axis,
    size_chart,
)
from recipes.report.content import Content
from recipes.report.ledger import Entry


@dataclass(frozen=True)
class Intervals:
    """Rows of dots with intervals over one axis; `zero` is where 0 lies, in per cent, or None."""

    title: str
    rows: list[IntervalRow]
    axis: Axis
    zero: float | None = None


@dataclass(frozen=True)
class CostRow:
    """A stage's bars, in per cent of the longest, and its texts."""

    entry: Entry
    wall: float
    cpu: float


def render(content: Content, title: str) -> str:
    """The page as text; equal content gives equal text."""
    import jinja2
    import markupsafe

    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name in ("percent", "points", "interval", "points_interval", "size", "number"):
        environment.filters[name] = getattr(wording, name)
    environment.filters["duration"] = duration
    own_style = (folder / "style.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.jinja").render(
        title=title,
        style=markupsafe.Markup(own_style),  # noqa: S704  our own file
        content=content,
        first=content.first_scores,
        tones=content.tones,
        headline=_headline(content),
        size_charts=_size_charts(content),
        gains=_gains(content),
        metric_names=_shown(content),
        column_rows=_COLUMN_ROWS,
        curves={
            name: [curve_chart(curve, content.tones[name]) for curve in curves]
            for name, curves in content.curves.items()
        },
        costs=_costs(content.entries),
    )


_COLUMN_ROWS = (
    ("truncated", "Truncated", "samples that ended at the token limit", "percent"),
    ("no_answer", "No answer", "samples in which none was found or could be read", "percent"),
    ("no_answer_majority", "No answer leads", "problems where no answer is the most frequent outcome", "percent"),
    ("timeout", "Timed out", "samples whose verification did, counted as not right", "percent"),
    ("no_verdict", "No verdict", "samples on which a judge model gave none, counted as not right", "percent"),
    ("tokens_mean", "Tokens, mean", "of a completion", "number"),
    ("tokens_p50", "Tokens, median", "", "number"),
    ("tokens_p90", "Tokens, 90th percentile", "", "number"),
    ("tokens_p99", "Tokens, 99th percentile", "", "number"),
)


def _headline(content: Content) -> Intervals:
    """pass@1 of each model."""
    axis = share_axis()
    rows = [
        interval_row(axis, content.tones[name], name, found, (wording.percent(found.value), wording.interval(found)))
        for name, found in ((name, scores.metrics["pass@1"]) for name, scores in content.scores.items())
    ]
    return Intervals("pass@1, with 95 % intervals", rows, axis)


def _size_charts(content: Content) -> list[Chart]:
    if content.first_scores.n < 2:
        return []
    tries = _by_size(content, "pass")
    votes = {name: {1: points[1], **_votes(content.scores[name])} for name, points in tries.items()}
    return [
        size_chart("pass@k", "% of problems that at least one of k samples solves", tries, content.tones),
        size_chart("maj@k", "% of problems that a vote of k samples solves", votes, content.tones),
    ]


def _by_size(content: Content, metric: str) -> dict[str, dict[int, Interval]]:
    return {name: _sizes(scores, metric) for name, scores in content.scores.items()}


def _votes(scores: Scores) -> dict[int, Interval]:
    return _sizes(scores, "maj")


def _sizes(scores: Scores, metric: str) -> dict[int, Interval]:
    parts = {name: name.split("@") for name in scores.metrics}
    return {int(parts[name][1]): found for name, found in scores.metrics.items() if parts[name][0] == metric}


def _shown(content: Content) -> list[str]:
    """All metrics but avg@n, which is pass@1."""
    return [name for name in content.first_scores.metrics if not name.startswith("avg@")]


def _gains(content: Content) -> list[Intervals]:
    """The paired differences of each model from the one before it, all on one axis."""
    shown = _shown(content)
    ends = [end for pair in content.pairs for m in shown for end in (pair.metrics[m].low, pair.metrics[m].high)]
    if not ends:
        return []
    axis = linear_axis([100 * end for end in ends], zero=True)
    gains = []
    for pair in content.pairs:
        rows = []
        for name in shown:
            found = pair.metrics[name]
            scaled = Interval(value=100 * found.value, low=100 * found.low, high=100 * found.high)
            texts = (wording.points(found.value), wording.points_interval(found))
            muted = found.low <= 0 <= found.high
            rows.append(interval_row(axis, content.tones[pair.after], name, scaled, texts, muted))
        gains.append(Intervals(f"{pair.after} minus {pair.before}", rows, axis, round(100 * axis.at(0), 2)))
    return gains


def _costs(entries: list[Entry]) -> list[CostRow]:
    longest = max([*(e.cost.wall_s for e in entries), *(e.cost.cpu_s for e in entries), 1e-9])
    return [
        CostRow(e, round(100 * e.cost.wall_s / longest, 2), round(100 * e.cost.cpu_s / longest, 2)) for e in entries
    ]
