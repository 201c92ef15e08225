"""The metrics of sampled answers, one problem at a time: pass@k, and maj@k by classes of equivalent answers.

Pure functions of counts and classes; `recipes.evaluation.scoring` calls them for every problem.
"""

import math
from collections import Counter
from collections.abc import Container, Sequence
from itertools import combinations
from typing import NamedTuple

RIGHT = 0
"""The class of all answers that were verified against the gold answer: each is equivalent to it."""


class Answer(NamedTuple):
    """What matters of one graded sample when votes are counted."""

    extracted: str | None
    verdict: str


class Vote(NamedTuple):
    """The majority votes over one problem's samples: expected credit and how many of the votes were tied, in 0..1."""

    credit: float
    tied: float


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The unbiased estimate of the chance that at least one of k samples is right, 1 - C(n-c, k) / C(n, k).

    Computed as a product, which neither overflows nor cancels (Chen et al. 2021, arXiv 2107.03374, figure 3).

    Args:
        n: samples drawn.
        correct: how many of them are right.
        k: samples allowed, 1 <= k <= n.
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(f"pass@{k} is not defined for {correct} right of {n}")
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - correct + 1, n + 1))


def sizes(n: int) -> list[int]:
    """The k at which n samples are scored: 1, 2, 4, ... and n itself."""
    return sorted({2**power for power in range(n.bit_length()) if 2**power <= n} | {n})


def vote_sizes(n: int) -> list[int]:
    """The k at which votes are counted: from 3 up (a vote of two decides nothing), and n itself."""
    return [k for k in sizes(n) if k > 2 or k == n > 1]


def has_answer(answer: Answer) -> bool:
    """Whether the sample takes part in votes: an answer was found in it and could be read."""
    return answer.extracted is not None and answer.verdict != "unparseable_answer"


def open_pairs(answers: Sequence[Answer]) -> list[tuple[str, str]]:
    """The pairs of different wrong answers whose equivalence `answer_classes` will ask for, each text pair sorted.

    Right answers need no comparison, and an answer whose verification ran out of time is compared with none, as that
    could take as long again.
    """
    compared = {a.extracted for a in answers if a.extracted is not None and has_answer(a) and _comparable(a)}
    return list(combinations(sorted(compared), 2))


def answer_classes(answers: Sequence[Answer], equivalent: Container[tuple[str, str]]) -> list[int | None]:
    """The class of each sample's answer: RIGHT, a number of its own for each wrong answer, None for no answer.

    Wrong answers are joined by the symmetric, transitive closure of the equivalent pairs, so neither the order of the
    samples nor the direction of a comparison matters.

    Args:
        answers: one a sample.
        equivalent: the pairs of texts that mean the same, of those in `open_pairs`.

    Returns:
        One entry a sample. Wrong classes are numbered from 1 by their first sample.
    """
    parent: dict[str, str] = {}
    for one, other in open_pairs(answers):
        if (one, other) in equivalent or (other, one) in equivalent:
            root = _root(parent, one)
            parent[_root(parent, other)] = root
    verified = {a.extracted for a in answers if a.verdict == "correct"}
    numbers: dict[str, int] = {}
    classes: list[int | None] = []
    for answer in answers:
        if answer.extracted is None or not has_answer(answer):
            classes.append(None)
        elif answer.extracted in verified:
            classes.append(RIGHT)
        else:
            root = _root(parent, answer.extracted)
            classes.append(numbers.setdefault(root, len(numbers) + 1))
    return classes


def majority(classes: Sequence[int | None], k: int) -> Vote:
    """maj@k: the most frequent class of k samples gives the answer, averaged over the floor(n/k) disjoint groups of k
    consecutive samples.

    No answer is an outcome that never wins. Where t classes share the lead, one of them would be taken by lot, so the
    credit is 1/t if the right class is among them. A group without any answer has credit 0 and no tie.
    """
    if not 1 <= k <= len(classes):
        raise ValueError(f"maj@{k} is not defined for {len(classes)} samples")
    votes = [_vote(classes[start : start + k]) for start in range(0, len(classes) - k + 1, k)]
    return Vote(sum(v.credit for v in votes) / len(votes), sum(v.tied for v in votes) / len(votes))


def no_answer_leads(classes: Sequence[int | None]) -> bool:
    """Whether having no answer is more frequent than every answer."""
    counts = Counter(classes)
    silent = counts.pop(None, 0)
    return silent > max(counts.values(), default=0)


def _vote(classes: Sequence[int | None]) -> Vote:
    counts = Counter(number for number in classes if number is not None)
    if not counts:
        return Vote(0.0, 0.0)
    most = max(counts.values())
    leaders = [number for number, count in counts.items() if count == most]
    return Vote((RIGHT in leaders) / len(leaders), float(len(leaders) > 1))


def _comparable(answer: Answer) -> bool:
    return answer.verdict not in ("correct", "timeout")


def _root(parent: dict[str, str], text: str) -> str:
    while parent.get(text, text) != text:
        text = parent[text]
    return text
