"""The report as Markdown, for terminals, pull requests and mail; the report stage writes it beside the page."""

from collections.abc import Iterable, Sequence

from reasonforge.progress import duration
from recipes.report.content import Content
from recipes.report.wording import interval, number, percent, points, points_interval, size


def render(content: Content, title: str) -> str:
    """The findings and tables of a report; equal content gives equal text."""
    first = content.first_scores
    parts = [f"# {_plain(title)}"]
    parts += [f"**{_plain(found.headline)}** {_plain(found.detail)}" for found in reversed(content.findings)]
    parts.append(f"{first.problems} problems, {first.n} samples each; 95 % bootstrap intervals over problems.")
    parts += ["## Scores", _scores(content)]
    if content.pairs:
        parts += ["## Paired differences, in points", _pairs(content)]
    if content.funnel:
        parts += ["## Data", _funnel(content)]
    parts += ["## Cost", _costs(content)]
    if content.usage:
        parts += ["## Cluster", _usage(content)]
    return "\n\n".join(parts) + "\n"


def _scores(content: Content) -> str:
    models = list(content.scores.values())
    rows = [
        [name, *(f"{percent(m.metrics[name].value)} {interval(m.metrics[name])}" for m in models)]
        for name in content.first_scores.metrics
    ]
    rows += [
        ["truncated", *(percent(m.columns.truncated) for m in models)],
        ["no answer", *(percent(m.columns.no_answer) for m in models)],
        ["no answer leads", *(percent(m.columns.no_answer_majority) for m in models)],
        ["timed out", *(percent(m.columns.timeout) for m in models)],
        ["no verdict", *(percent(m.columns.no_verdict) for m in models)],
        ["tokens, mean", *(number(m.columns.tokens_mean) for m in models)],
        ["tokens, 90th percentile", *(number(m.columns.tokens_p90) for m in models)],
        *([f"tied votes, {name}", *(percent(m.ties[name]) for m in models)] for name in content.first_scores.ties),
        ["problems scored", *(f"{number(m.scored)} of {number(m.problems)}" for m in models)],
    ]
    return _table(["", *content.scores], rows)


def _pairs(content: Content) -> str:
    rows = [
        [name, *(f"{points(p.metrics[name].value)} {points_interval(p.metrics[name])}" for p in content.pairs)]
        for name in content.first_scores.metrics
    ]
    return _table(["", *(f"{pair.after} minus {pair.before}" for pair in content.pairs)], rows)


def _funnel(content: Content) -> str:
    steps = content.funnel.steps if content.funnel else []
    rows = [
        [
            s.name,
            number(s.rows_in),
            number(s.rows_out),
            ", ".join(f"{r} {number(c)}" for r, c in s.dropped.items() if c),
        ]
        for s in steps
    ]
    return _table(["step", "in", "out", "dropped"], rows)


def _costs(content: Content) -> str:
    rows = [
        [
            e.stage,
            duration(e.cost.wall_s),
            duration(e.cost.cpu_s),
            size(e.cost.peak_rss_bytes),
            e.key[:12],
            e.digest[:12],
        ]
        for e in content.entries
    ]
    return _table(["stage", "wall", "CPU", "memory", "key", "digest"], rows)


def _usage(content: Content) -> str:
    rows = [
        [u.stage, str(u.attempts), f"{u.gpu_hours_at_most:g}", f"{u.gpu_hours:g}", f"{u.cpu_hours:g}"]
        for u in content.usage
    ]
    return _table(["stage", "attempts", "GPU-hours at most", "GPU-hours", "CPU-hours"], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def _plain(text: str) -> str:
    """A name or reason that cannot end a table cell, begin a tag or a line."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
