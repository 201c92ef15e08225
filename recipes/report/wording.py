"""Numbers and findings as people read them; used by the page, the Markdown and the launcher's last line."""

from dataclasses import dataclass

from recipes.evaluation.scoring import Interval, Scores

_STILL = 0.02
"""A change of pass@n smaller than this, or than a fifth of the change of pass@1, is called hardly any."""


@dataclass(frozen=True)
class Pair:
    """A model beside the one before it, and their paired differences by metric."""

    before: str
    after: str
    metrics: dict[str, Interval]

    @property
    def name(self) -> str:
        """As in `report.json`: "grpo-distilled"."""
        return f"{self.after}-{self.before}"


@dataclass(frozen=True)
class Finding:
    """What a comparison says: a headline, and a sentence with the interval that qualifies it."""

    headline: str
    detail: str


def finding(pair: Pair, n: int) -> Finding:
    """The verdict on a pair, from pass@1 and from pass@n: a gain at the first try alone is a sharpening of what the
    model could already do with more tries, not a new skill (Yue et al. 2025, arXiv 2504.13837).
    """
    first, most = pair.metrics["pass@1"], pair.metrics[f"pass@{n}"]
    size = f"{abs(100 * first.value):.1f} points of pass@1"
    if _includes_zero(first):
        headline = f"{pair.after} is not measurably different from {pair.before}."
        change = f"pass@1 changes by {points(first.value)} points"
        return Finding(headline, f"{change}, and the 95 % interval {points_interval(first)} includes 0.")
    held = f"The 95 % interval of the paired difference is {points_interval(first)}"
    if first.value < 0:
        return Finding(f"{pair.after} loses {size} against {pair.before}.", f"{held} points.")
    headline = f"{pair.after} gains {size} over {pair.before}."
    return Finding(headline, f"{held} points{_breadth(pair, first, most, n)}.")


def lone_finding(name: str, scores: Scores) -> Finding:
    """What can be said of one model alone."""
    found = scores.metrics["pass@1"]
    detail = f"Its 95 % interval is {interval(found)}. There is no other model to compare it with."
    return Finding(f"{name} answers {percent(found.value)} of its samples right.", detail)


def _breadth(pair: Pair, first: Interval, most: Interval, n: int) -> str:
    """The rest of a gain's sentence: what became of the problems that n tries solve."""
    if n == 1:
        return ""
    change = f"{points(most.value)} {points_interval(most)}"
    sharpens = f"this sharpens what {pair.before} could already do, it does not show new skills"
    if abs(most.value) < max(_STILL, first.value / 5):
        return f", while pass@{n} hardly moves ({change}): {sharpens}"
    if _includes_zero(most):
        return f", while the interval of pass@{n} includes 0 ({change}): {sharpens}"
    if most.value < 0:
        return f", but pass@{n} falls ({change}): fewer problems are solved in {n} tries"
    return f", and pass@{n} rises too ({change}): it solves problems that {pair.before} did not solve in {n} tries"


def _includes_zero(found: Interval) -> bool:
    return found.low <= 0 <= found.high


def percent(share: float) -> str:
    """A share of 1 as a percentage: "82.0 %"."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign: "+29.2"."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def interval(found: Interval) -> str:
    """An interval of shares in per cent: "[80.1, 83.9]"."""
    return f"[{100 * found.low:.1f}, {100 * found.high:.1f}]"


def points_interval(found: Interval) -> str:
    """An interval of differences in points: "[+26.8, +31.9]"."""
    return f"[{points(found.low)}, {points(found.high)}]"


def size(count: int) -> str:
    """Bytes as "812 MiB"."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"


def number(value: float | None) -> str:
    """A count with thousands separated by a thin space; a dash where there is none."""
    return "–" if value is None else f"{value:,.0f}".replace(",", "\u202f")
