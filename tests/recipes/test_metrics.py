"""pass@k and maj@k against enumeration."""

from itertools import combinations
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.evaluation.metrics import (
    RIGHT,
    Answer,
    answer_classes,
    majority,
    no_answer_leads,
    open_pairs,
    pass_at_k,
    sizes,
    vote_sizes,
)

CLASSES = st.lists(st.sampled_from([None, RIGHT, 1, 2]), min_size=1, max_size=9)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(right, data):
    k = data.draw(st.integers(1, len(right)))
    subsets = list(combinations(right, k))
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@given(st.integers(1, 2000), st.data())
def test_pass_at_k_is_the_closed_form_also_where_it_is_large(n, data):
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    exact = 1 - comb(n - correct, k) / comb(n, k)
    assert pass_at_k(n, correct, k) == pytest.approx(exact, abs=1e-9)


def test_pass_at_k_of_none_and_all():
    assert pass_at_k(16, 0, 16) == 0.0
    assert pass_at_k(16, 16, 1) == 1.0
    assert pass_at_k(16, 3, 1) == pytest.approx(3 / 16)


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 2, 5), (4, 5, 1), (4, 1, 0), (4, -1, 1)])
def test_pass_at_k_refuses_what_has_no_meaning(n, correct, k):
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(n, correct, k)


def test_sizes_are_powers_of_two_and_n():
    assert sizes(16) == [1, 2, 4, 8, 16]
    assert sizes(12) == [1, 2, 4, 8, 12]
    assert sizes(1) == [1]
    assert vote_sizes(16) == [4, 8, 16]
    assert vote_sizes(2) == [2]
    assert vote_sizes(1) == []


def lots(group):
    """The winner of a vote drawn by lot, enumerated: every answer that no other answer outnumbers."""
    answers = [a for a in group if a is not None]
    return [a for a in dict.fromkeys(answers) if all(answers.count(a) >= answers.count(b) for b in answers)]


@given(CLASSES, st.data())
def test_majority_is_the_expected_credit_over_consecutive_groups(classes, data):
    k = data.draw(st.integers(1, len(classes)))
    winners = [lots(classes[i * k : (i + 1) * k]) for i in range(len(classes) // k)]
    vote = majority(classes, k)
    assert vote.credit == pytest.approx(sum(w.count(RIGHT) / len(w) if w else 0 for w in winners) / len(winners))
    assert vote.tied == pytest.approx(sum(len(w) > 1 for w in winners) / len(winners))


def test_majority_by_hand():
    assert majority([RIGHT, 1, RIGHT, 2], 4) == (1.0, 0.0)
    assert majority([RIGHT, 1, RIGHT, 1], 4) == (0.5, 1.0)
    assert majority([None, None, None, RIGHT], 4) == (1.0, 0.0), "no answer never wins"
    assert majority([None] * 4, 4) == (0.0, 0.0)
    assert majority([RIGHT, RIGHT, 1, 1, RIGHT], 2) == (0.5, 0.0), "the fifth sample is in no group of two"


def test_no_answer_leads_only_when_it_is_ahead():
    assert no_answer_leads([None, None, RIGHT])
    assert not no_answer_leads([None, None, RIGHT, RIGHT])
    assert no_answer_leads([None])


def answers(*texts, right=()):
    return [Answer(text, "correct" if text in right else "wrong") for text in texts]


def test_classes_are_joined_by_symmetric_transitive_closure():
    one_way = {("a", "b"), ("c", "b")}
    classes = answer_classes(answers("a", "b", "c", "d", "7", right="7"), one_way)
    assert classes == [1, 1, 1, 2, RIGHT]


@given(
    st.permutations(["a", "b", "c", "d", "e"]), st.sets(st.tuples(st.sampled_from("abcde"), st.sampled_from("abcde")))
)
def test_classes_do_not_depend_on_the_order_of_samples(order, related):
    def partition(texts):
        found = answer_classes(answers(*texts), related)
        return {frozenset(t for t, c in zip(texts, found, strict=True) if c == number) for number in found}

    assert partition(order) == partition("abcde")


def test_what_cannot_be_compared_is_not():
    hung = Answer("9^9^9^9", "timeout")
    drawn = [hung, hung, Answer("7", "correct"), Answer("7.0", "correct"), Answer(None, "unparseable_answer")]
    drawn += [Answer("??", "unparseable_answer"), Answer("9", "wrong"), Answer("8", "wrong"), Answer("8", "wrong")]
    assert open_pairs(drawn) == [("8", "9")]
    assert answer_classes(drawn, set()) == [1, 1, RIGHT, RIGHT, None, None, 2, 3, 3]
