from itertools import permutations

import pytest

from data_prep.grading import ChoiceGrader, CodeGrader, ExactGrader, MathVerifyGrader, NumericGrader
from data_prep.grading.voting import Vote, Voting, agreements, vote, vote_rows
from reasonforge.errors import RequestError


def near(a: str, b: str) -> bool:
    """Not transitive: 1 is near 2 and 2 near 3."""
    return abs(int(a) - int(b)) <= 1


def equal(a: str, b: str) -> bool:
    return a == b


@pytest.mark.parametrize(
    ("answers", "voting", "expected"),
    [
        (["4", "4", "5"], Voting(), Vote("majority", "4", 2, 3, (2, 1))),
        (["4", "5"], Voting(), Vote("tie", None, 1, 2, (1, 1))),
        (["4", "4", "5", "5", "6"], Voting(), Vote("tie", None, 2, 5, (2, 2, 1))),
        ([None, None], Voting(), Vote("no_answer", None, 0, 2, ())),
        ([], Voting(), Vote("no_answer", None, 0, 0, ())),
        (["4", None, None], Voting(), Vote("majority", "4", 1, 3, (1,))),
        (["4", None, None], Voting(min_share=0.5), Vote("too_few", None, 1, 3, (1,))),
        (["4", "4", "5", "6"], Voting(min_share=0.5), Vote("majority", "4", 2, 4, (2, 1, 1))),
        (["4", "4", "5"], Voting(min_votes=3), Vote("too_few", None, 2, 3, (2, 1))),
        (["4", "5"], Voting(min_votes=3), Vote("tie", None, 1, 2, (1, 1))),
    ],
)
def test_outcomes(answers: list[str | None], voting: Voting, expected: Vote) -> None:
    assert vote(answers, equal, voting) == expected


def test_the_order_of_samples_does_not_matter_even_where_equality_is_not_transitive() -> None:
    answers = ["1", "3", "2", "7", "8", None]
    found = {vote(order, near) for order in permutations(answers)}
    assert found == {Vote("majority", "1", 3, 6, (3, 2))}


def samples(*answers: str, **row: object) -> list[dict[str, object]]:
    return [{"response": f"\\boxed{{{text}}}" if text else "none", "answer": "999", **row} for text in answers]


def test_classes_are_the_graders_own() -> None:
    problems = [
        samples("1/2", "0.5", "3", r"\frac{1}{2}", "3"),  # as text 3 would win
        samples("(x-1)(x+1)", "x^2-1", "x^2"),
        samples("0.5", "1/2", "3", "3"),
        samples("", ""),
        samples("7", ""),
        samples(r"\approx", r"\approx", "4"),  # equal texts are equal, read or not
    ]
    found = list(vote_rows(problems, MathVerifyGrader(), 1))
    assert [(one.outcome, one.answer, one.votes) for one in found] == [
        ("majority", "0.5", 3), ("majority", "x^2-1", 2), ("tie", None, 2), ("no_answer", None, 0),
        ("majority", "7", 1), ("majority", r"\approx", 2),
    ]  # fmt: skip


def test_options_and_units_of_the_row_count() -> None:
    choices = samples("Paris", "B", "A", options=["Rome", "Paris"])
    lengths = samples("10 cm", "0.1 m", "10 m", unit=None)
    assert next(vote_rows([choices], ChoiceGrader(), 1)).classes == (2, 1)
    assert next(vote_rows([lengths], NumericGrader(), 1)) == Vote("majority", "0.1 m", 2, 3, (2, 1))
    assert next(vote_rows([samples("a", "a", "b")], ExactGrader(), 1)).answer == "a"


def test_the_right_answer_of_the_row_plays_no_part() -> None:
    one, other = (samples("4", "4", "5") for _ in range(2))
    for row in other:
        row["answer"] = "5"
    first, second = vote_rows([one, other], MathVerifyGrader(), 1)
    assert first == second


def test_programs_cannot_be_voted_on() -> None:
    with pytest.raises(RequestError, match="code: cannot say whether two answers are the same"):
        next(vote_rows([samples("a")], CodeGrader(), 1))


def test_agreements_go_by_the_row() -> None:
    lengths = NumericGrader()
    metres, letters = {"answer": "3 m"}, {"answer": "A", "options": ["red", "blue"]}
    questions = [(metres, "300 cm", "3 m"), (metres, "3 m", "3 cm")]
    assert list(agreements(questions, lengths, 1)) == [True, False]
    assert list(agreements([(letters, "A", "red"), (letters, "A", "blue")], ChoiceGrader(), 1)) == [True, False]
    assert list(agreements([({}, "a = 1", "a = 1 "), ({}, "a = 1", "b = 1")], CodeGrader(), 1)) == [True, False]
