"""From graded samples to `scores.json`, and from two models' scores to their paired differences.

The evaluate stage writes what `score` returns; the report reads it with `read_scores` and calls `compare`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from reasonforge.config import Strict
from reasonforge.errors import RequestError
from reasonforge.files import canonical_json, sha256_text
from recipes.evaluation import metrics
from recipes.evaluation.bootstrap import RESAMPLES, mean_intervals

_DIGITS = 6
"""Decimals kept, so that the files do not differ by the last bits of a machine's linear algebra."""


class Interval(Strict):
    """A mean over problems and its 95 % bootstrap interval, as shares (0..1) or differences of shares (-1..1)."""

    value: float
    low: float
    high: float


class Columns(Strict):
    """What explains a score. Rates are shares of all samples of the scored problems, unless they say otherwise."""

    truncated: float
    """Samples that ended at the token limit (finish_reason "length")."""
    no_answer: float
    """Samples in which no answer was found, or none that could be read."""
    no_answer_majority: float
    """Share of problems in which having no answer is more frequent than every answer."""
    timeout: float
    """Samples whose verification ran out of time; they count as not correct."""
    no_verdict: float = 0.0
    """Samples on which a judge model gave no verdict that can be read; they count as not correct."""
    tokens_mean: float | None
    """Completion tokens; null where the engine counted none, as in the quantiles."""
    tokens_p50: float | None
    tokens_p90: float | None
    tokens_p99: float | None


class ProblemScore(Strict):
    """One problem's counts, enough to compute every metric again."""

    id: str
    n: int
    correct: int
    scored: bool
    """False where the gold answer cannot be parsed: such a problem is in no mean."""
    majority: dict[str, float]
    """Credit of the votes by metric name ("maj@4"), 0..1."""
    tied: dict[str, float]
    """Share of tied votes by metric name."""


class Scores(Strict):
    """The content of `scores.json`."""

    format: Literal[1] = 1
    n: int
    """Samples of each problem."""
    problems: int
    scored: int
    """Problems in the means: all but those of `unparseable_gold`."""
    unparseable_gold: int
    sampling: dict[str, Any]
    grader: dict[str, Any]
    prompt_sha256: str
    """Over the ids, prompts and gold answers of the problems, sorted by id."""
    resamples: int
    metrics: dict[str, Interval]
    """`avg@N` (the mean share of right samples, equal to `pass@1`), `pass@K`, `maj@K`."""
    ties: dict[str, float]
    """Mean share of tied votes by "maj@K"; each gave credit 1/t to t leaders."""
    columns: Columns
    per_problem: list[ProblemScore]


Equivalent = Callable[[Sequence[tuple[str, str, str]]], Iterable[bool]]
"""Tells of each problem (by its id) and two answers to it whether they mean the same."""


class _Sample(NamedTuple):
    number: int
    answer: metrics.Answer
    truncated: bool
    tokens: int | None


def score(
    rows: Iterable[Mapping[str, Any]],
    problems: Sequence[Mapping[str, Any]],
    *,
    where: str,
    sampling: Mapping[str, Any],
    grader: Mapping[str, Any],
    equivalent: Equivalent,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Scores:
    """Score graded rows of the evaluation problems.

    Args:
        rows: graded rows, in any order.
        problems: the problem rows that were asked, in order.
        where: the file of the rows, for errors.
        sampling: what the samples were drawn with; `samples` is n.
        grader: the grader's configuration.
        equivalent: compares extracted answers.

    Raises:
        RequestError: where a problem has not exactly n samples numbered 0..n-1, a row belongs to no problem, or no
            problem has a gold answer that can be parsed. A score over the wrong number of samples would be wrong.
    """
    n = int(sampling["samples"])
    samples = _by_problem(rows, problems, n, where)
    classes = _classes(samples, equivalent)
    per_problem = [_problem_score(problem, samples[problem], classes[problem]) for problem in samples]
    scored = [entry for entry in per_problem if entry.scored]
    if not scored:
        raise RequestError(where, "no problem has a gold answer that the grader can parse", "check `answer` and grader")
    names = metric_names(n)
    kept = [entry.id for entry in scored]
    return Scores(
        n=n,
        problems=len(per_problem),
        scored=len(scored),
        unparseable_gold=len(per_problem) - len(scored),
        sampling=dict(sampling),
        grader=dict(grader),
        prompt_sha256=prompt_sha256(problems),
        resamples=resamples,
        metrics=_intervals(names, [_values(entry, names) for entry in scored], resamples, seed),
        ties={name: _mean([entry.tied[name] for entry in scored]) for name in names if name.startswith("maj@")},
        columns=_columns([samples[problem] for problem in kept], [classes[problem] for problem in kept]),
        per_problem=per_problem,
    )


def compare(
    before: tuple[str, Scores], after: tuple[str, Scores], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Paired differences `after - before` of every metric, with intervals from problems drawn jointly for both.

    Args:
        before: a model's name and scores.
        after: the other model's.

    Raises:
        RequestError: where the two were not asked the same problems in the same way: another number of samples,
            other sampling parameters, other problems or prompts, or another grader.
    """
    refuse_unlike(before, after)
    pairs = {entry.id: entry for entry in before[1].per_problem if entry.scored}
    shared = [(pairs[entry.id], entry) for entry in after[1].per_problem if entry.scored and entry.id in pairs]
    if not shared:
        raise RequestError(_both(before, after), "no problem was scored for both")
    names = metric_names(after[1].n)
    differences = [
        [b - a for a, b in zip(_values(one, names), _values(other, names), strict=True)] for one, other in shared
    ]
    return _intervals(names, differences, resamples, seed)


def refuse_unlike(before: tuple[str, Scores], after: tuple[str, Scores]) -> None:
    """Raise RequestError unless two models' scores may be compared."""
    (one, first), (other, second) = before, after
    where = _both(before, after)
    if first.n != second.n:
        raise RequestError(where, f"{first.n} samples a problem for {one} but {second.n} for {other}", _ALIKE)
    for title, here, there in (
        ("sampling", first.sampling, second.sampling),
        ("grader", first.grader, second.grader),
    ):
        for key in sorted({*here, *there}):
            if here.get(key) != there.get(key):
                found = f"{title}.{key} is {here.get(key)!r} for {one} but {there.get(key)!r} for {other}"
                raise RequestError(where, found, _ALIKE)
    ids, others = ({entry.id for entry in scores.per_problem} for scores in (first, second))
    if unlike := sorted(ids ^ others):
        owner, lacking = (one, other) if unlike[0] in ids else (other, one)
        found = f"{len(unlike)} problems are not in both: {unlike[0]!r} is in {owner} but not in {lacking}"
        raise RequestError(where, found, _ALIKE)
    if first.prompt_sha256 != second.prompt_sha256:
        raise RequestError(where, "the same problem ids have other prompts or gold answers (prompt_sha256)", _ALIKE)


def metric_names(n: int) -> list[str]:
    """The metrics of n samples a problem, in the order of reports."""
    return [f"avg@{n}", *(f"pass@{k}" for k in metrics.sizes(n)), *(f"maj@{k}" for k in metrics.vote_sizes(n))]


def prompt_sha256(problems: Iterable[Mapping[str, Any]]) -> str:
    """What was asked: the SHA-256 over the ids, prompts and gold answers of the problems, sorted by id."""
    return sha256_text(canonical_json(sorted([row["id"], row["prompt"], row["answer"]] for row in problems)))


def read_scores(path: Path) -> Scores:
    """Read a `scores.json`; RequestError names the first key that is wrong."""
    try:
        return Scores.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise RequestError(str(path), "no such file") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise RequestError(f"{path}: {key}", first["msg"], "make the scores again with --force STAGE") from None


_ALIKE = "evaluate both with the same sampling, grader and problems"


def _both(before: tuple[str, Scores], after: tuple[str, Scores]) -> str:
    return f"comparing {after[0]} with {before[0]}"


def _by_problem(
    rows: Iterable[Mapping[str, Any]], problems: Sequence[Mapping[str, Any]], n: int, where: str
) -> dict[str, list[_Sample]]:
    samples: dict[str, list[_Sample]] = {row["id"]: [] for row in problems}
    for row in rows:
        if row["problem_id"] not in samples:
            raise RequestError(where, f"{row['id']!r} answers {row['problem_id']!r}, which is not among the problems")
        samples[row["problem_id"]].append(_sample(row))
    for problem, drawn in samples.items():
        drawn.sort(key=lambda sample: sample.number)
        if [sample.number for sample in drawn] != list(range(n)):
            found = f"{problem!r} has {len(drawn)} samples"
            if len(drawn) == n:
                found = f"the samples of {problem!r} are not numbered 0 to {n - 1}"
            raise RequestError(where, found, f"each problem needs exactly {n} (sampling.samples)")
    return samples


def _sample(row: Mapping[str, Any]) -> _Sample:
    answer = metrics.Answer(row["extracted"], row["verdict"])
    return _Sample(row["sample"], answer, row["finish_reason"] == "length", row["completion_tokens"])


def _classes(samples: Mapping[str, Sequence[_Sample]], equivalent: Equivalent) -> dict[str, list[int | None]]:
    answers = {problem: [sample.answer for sample in drawn] for problem, drawn in samples.items()}
    asked = [(problem, *pair) for problem, drawn in answers.items() for pair in metrics.open_pairs(drawn)]
    same: dict[str, set[tuple[str, str]]] = {problem: set() for problem in answers}
    for (problem, one, other), is_same in zip(asked, equivalent(asked), strict=True):
        if is_same:
            same[problem].add((one, other))
    return {problem: metrics.answer_classes(drawn, same[problem]) for problem, drawn in answers.items()}


def _problem_score(problem: str, drawn: Sequence[_Sample], classes: Sequence[int | None]) -> ProblemScore:
    n = len(drawn)
    votes = {f"maj@{k}": metrics.majority(classes, k) for k in metrics.vote_sizes(n)}
    return ProblemScore(
        id=problem,
        n=n,
        correct=sum(sample.answer.verdict == "correct" for sample in drawn),
        scored=all(sample.answer.verdict != "unparseable_gold" for sample in drawn),
        majority={name: round(vote.credit, _DIGITS) for name, vote in votes.items()},
        tied={name: round(vote.tied, _DIGITS) for name, vote in votes.items()},
    )


def _values(entry: ProblemScore, names: Sequence[str]) -> list[float]:
    return [_value(entry, *name.split("@")) for name in names]


def _value(entry: ProblemScore, metric: str, k: str) -> float:
    if metric == "maj":
        return entry.majority[f"maj@{k}"]
    return metrics.pass_at_k(entry.n, entry.correct, 1 if metric == "avg" else int(k))


def _intervals(
    names: Sequence[str], values: Sequence[Sequence[float]], resamples: int, seed: int
) -> dict[str, Interval]:
    import numpy as np

    found = mean_intervals(np.asarray(values, dtype=np.float64), resamples=resamples, seed=seed)
    rounded = [[_rounded(float(number)) for number in row] for row in found]
    return {
        name: Interval(value=value, low=low, high=high) for name, (value, low, high) in zip(names, rounded, strict=True)
    }


def _columns(samples: Sequence[Sequence[_Sample]], classes: Sequence[Sequence[int | None]]) -> Columns:
    drawn = [sample for group in samples for sample in group]
    tokens = sorted(sample.tokens for sample in drawn if sample.tokens is not None)
    return Columns(
        truncated=_mean([sample.truncated for sample in drawn]),
        no_answer=_mean([not metrics.has_answer(sample.answer) for sample in drawn]),
        no_answer_majority=_mean([metrics.no_answer_leads(group) for group in classes]),
        timeout=_mean([sample.answer.verdict == "timeout" for sample in drawn]),
        no_verdict=_mean([sample.answer.verdict == "unparseable_verdict" for sample in drawn]),
        tokens_mean=_mean(tokens) if tokens else None,
        tokens_p50=_quantile(tokens, 0.5),
        tokens_p90=_quantile(tokens, 0.9),
        tokens_p99=_quantile(tokens, 0.99),
    )


def _quantile(ordered: Sequence[int], share: float) -> float | None:
    """The smallest value that at least `share` of them do not exceed."""
    return float(ordered[max(0, math.ceil(share * len(ordered)) - 1)]) if ordered else None


def _mean(values: Sequence[float]) -> float:
    return _rounded(sum(values) / len(values))


def _rounded(value: float) -> float:
    return round(value, _DIGITS) + 0.0  # no negative zero
