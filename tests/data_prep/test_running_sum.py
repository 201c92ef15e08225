from random import Random

from hypothesis import given
from hypothesis import strategies as st

from data_prep.sources import running_sum
from data_prep.sources.running_sum import RunningSum, count_distinct, draw, enumerate_all, parse


@given(st.integers(), st.integers(1, 8), st.integers(0, 5))
def test_every_total_is_in_range_and_the_prompt_reads_back(seed: int, min_terms: int, more: int) -> None:
    problem = draw(Random(seed), min_terms, min_terms + more)
    assert min_terms <= len(problem.operands) <= min_terms + more
    assert all(0 <= total <= 20 for total in problem.totals)
    assert all(1 <= abs(operand) <= 9 for operand in problem.operands)
    assert parse(problem.prompt) == problem
    assert problem.answer == problem.start + sum(problem.operands)


def test_the_prompt_is_that_of_the_notes() -> None:
    problem = RunningSum(9, (3, 6, -8))
    assert problem.prompt == "Start: 9\na+3\nb+6\nc-8"
    assert problem.totals == (9, 12, 18, 10)


@given(st.from_regex(r"\AStart: \d{1,2}(\n[a-c][+-]\d+)+\Z"))
def test_other_text_is_no_running_sum(text: str) -> None:
    found = parse(text)
    assert found is None or found.prompt == text


def test_labels_must_follow_the_alphabet() -> None:
    assert parse("Start: 9\na+3\nc+6") is None
    assert parse("Start: 9") is None
    assert parse("Start: 9\na+3\n") is None
    assert parse("Start: 9\na*3") is None


def test_count_and_enumeration_agree() -> None:
    found = list(enumerate_all(1, 2))
    assert len(found) == len(set(found)) == count_distinct(1, 2)
    assert all(0 <= total <= running_sum.LARGEST_TOTAL for problem in found for total in problem.totals)
    assert count_distinct(3, 6) > 10**8
