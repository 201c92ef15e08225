import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.grading import MathVerifyGrader
from data_prep.grading.lists import plain_list

GRADER = MathVerifyGrader()
NUMBERS = st.integers(-4, 4).map(str) | st.sampled_from(["1.5", "-0.5", r"\frac{1}{2}", r"\frac{-3}{2}", "7/4"])
SHAPES = ["({}, {})", "[{}, {}]", "({}, {}]", r"\{{{}, {}\}}", "{}, {}", "{} < x < {}", r"{} \le x < {}"]


@settings(max_examples=120, deadline=None)
@given(st.tuples(NUMBERS, NUMBERS), st.permutations([0, 1]), NUMBERS, st.booleans(), st.sampled_from(SHAPES))
def test_lists_agree_with_math_verify(
    numbers: tuple[str, str], order: list[int], other: str, same: bool, shape: str
) -> None:
    from math_verify import parse, verify

    gold = shape.format(*numbers)
    answer = shape.format(*([numbers[i] for i in order] if same else [numbers[0], other]))
    verdict = GRADER.decide(gold, answer)
    if verdict is not None:
        theirs = verify(parse(f"\\boxed{{{gold}}}"), parse(f"\\boxed{{{answer}}}"))
        assert (verdict == "correct") == theirs, (gold, answer)


@pytest.mark.parametrize("text", ["(1,234)", "(1, x)", "(1, 2 cm)", "(1, 1+1)", "5", "()", "(1, 2, 3]", "1 < 2", "1,"])
def test_what_is_no_plain_list(text: str) -> None:
    assert plain_list(text) is None
