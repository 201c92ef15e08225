"""Majority voting: which answer the samples of one problem agree on, by what answers mean and not by their text.

Self-consistency, Wang et al., arXiv 2203.11171, section 2: the answer that most samples reach is taken. Whoever has
several samples of a problem calls it: for pseudo-labels, and to compare a majority with the right answer.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from pydantic import Field

from data_prep.grading.base import BaseGrader, Verdict
from data_prep.grading.pool import GradingPool, Pair
from reasonforge.config import Strict
from reasonforge.errors import RequestError

Row = Mapping[str, Any]
Outcome = Literal["majority", "tie", "too_few", "no_answer"]

UNVOTABLE = ("code", "reasoning_gym")
"""Graders that know whether an answer is right, but not whether two answers are the same."""


class Voting(Strict):
    """What counts as a majority."""

    min_votes: int = Field(default=1, ge=1)
    """Samples that must agree; fewer are "too_few"."""
    min_share: float = Field(default=0.0, ge=0, le=1)
    """Part of all samples, those without an answer included, that must agree (0.5: half of them)."""


@dataclass(frozen=True)
class Vote:
    """The result for one problem.

    `outcome`: "majority"; "tie", where two classes have the most votes; "too_few", where the largest class is below
    the limits; "no_answer", where no sample has an answer. `answer` is the majority's, None for other outcomes; of
    its spellings the commonest, of equally common ones the shortest, then the first in code point order.
    `classes` are the sizes of all classes, largest first.
    """

    outcome: Outcome
    answer: str | None
    votes: int
    samples: int
    classes: tuple[int, ...]


def vote(answers: Sequence[str | None], same: Callable[[str, str], bool], voting: Voting | None = None) -> Vote:
    """Vote among the extracted answers of one problem's samples; None is a sample without an answer.

    The result does not depend on the order of the samples: each pair of different texts is compared, in sorted order,
    and classes are the transitive closure of `same`, so no answer is the first to which others are compared.

    Args:
        answers: one for each sample.
        same: whether two answers mean the same; called as same(a, b) with a < b in code point order.
        voting: the limits; by default the most common answer wins.
    """
    voting = voting or Voting()
    spellings = Counter(answer for answer in answers if answer is not None)
    classes = _classes(spellings, same)
    sizes = sorted((sum(spellings[text] for text in members) for members in classes), reverse=True)
    if not sizes:
        return Vote("no_answer", None, 0, len(answers), ())
    result = Vote("tie", None, sizes[0], len(answers), tuple(sizes))
    if sizes[1:2] == sizes[:1]:
        return result
    if sizes[0] < voting.min_votes or sizes[0] < voting.min_share * len(answers):
        return Vote("too_few", None, sizes[0], len(answers), tuple(sizes))
    winner = max(classes, key=lambda members: sum(spellings[text] for text in members))
    answer = min(winner, key=lambda text: (-spellings[text], len(text), text))
    return Vote("majority", answer, sizes[0], len(answers), tuple(sizes))


def vote_rows(
    problems: Iterable[Sequence[Row]], grader: BaseGrader, workers: int, voting: Voting | None = None
) -> Iterator[Vote]:
    """Vote on problem after problem, each the rows of its samples (`response`, and what `grader.gold` reads).

    Two answers mean the same where the grader, taking either as the right answer, accepts the other; so options and
    units of the row count, and its own `answer` does not. Comparisons run in worker processes with the grader's
    limits; one that takes too long counts as "not the same". Raises RequestError for graders that compare a program
    with tests or an answer with a scorer.
    """
    if (kind := str(getattr(grader, "type", ""))) in UNVOTABLE:
        raise RequestError(
            f"grader: {kind}", "cannot say whether two answers are the same, so nothing can be voted on",
            "vote with one of: choice, exact, judge, math_verify, numeric",
        )  # fmt: skip
    with GradingPool(grader, workers) as pool:
        for rows in problems:
            answers = [grader.extract(row["response"]) for row in rows]
            answers = [answer if answer and answer.strip() else None for answer in answers]
            same = _compare(rows[0] if rows else {}, answers, grader, pool)
            yield vote([_readable(answer, same) for answer in answers], lambda a, b: (a, b) in same, voting)  # noqa: B023


def agreements(questions: Iterable[tuple[Row, str, str]], grader: BaseGrader, workers: int) -> Iterator[bool]:
    """Of each problem's row and two extracted answers, whether the answers mean the same, in order.

    As in `vote_rows`; but for graders that cannot vote, two answers mean the same where they are the same text.
    """
    if str(getattr(grader, "type", "")) in UNVOTABLE:
        yield from (first.strip() == second.strip() for _, first, second in questions)
        return
    with GradingPool(grader, workers) as pool:
        yield from _agreements(questions, grader, pool)


def _agreements(questions: Iterable[tuple[Row, str, str]], grader: BaseGrader, pool: GradingPool) -> Iterator[bool]:
    """Each answer, taken as right, has to accept the other."""

    def asked() -> Iterator[tuple[Pair, Verdict | None]]:
        for row, first, second in questions:
            for right, answer in ((first, second), (second, first)):
                gold = grader.gold({**row, "answer": right})
                yield (gold, answer), grader.decide(gold, answer)

    verdicts = pool.verdicts(asked())
    for verdict in verdicts:
        yield (verdict, next(verdicts)) == ("correct", "correct")


def _compare(row: Row, answers: Iterable[str | None], grader: BaseGrader, pool: GradingPool) -> set[Pair]:
    """The pairs of answers that mean the same, each sorted; (a, a) where an answer can be read at all."""
    texts = sorted({answer for answer in answers if answer is not None})
    pairs = [(text, text) for text in texts] + list(combinations(texts, 2))
    same = _agreements(((row, *pair) for pair in pairs), grader, pool)
    # An expression that was not worked out may fail even against itself; it still is one answer, alone or not.
    return {pair for pair, both in zip(pairs, same, strict=True) if both}


def _readable(answer: str | None, same: set[Pair]) -> str | None:
    return answer if answer is not None and (answer, answer) in same else None


def _classes(texts: Iterable[str], same: Callable[[str, str], bool]) -> list[list[str]]:
    """The transitive closure of `same`, members and classes in code point order."""
    ordered = sorted(texts)
    home = {text: text for text in ordered}
    for first, second in combinations(ordered, 2):
        if home[first] != home[second] and same(first, second):
            keep, gone = sorted((home[first], home[second]))
            home = {text: keep if root == gone else root for text, root in home.items()}
    return [[text for text in ordered if home[text] == root] for root in sorted(set(home.values()))]
