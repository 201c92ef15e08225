import zlib
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from data_prep.filters import (
    CorrectFilter,
    Filter,
    Filters,
    LengthFilter,
    RepetitionFilter,
    ThinkingFilter,
    TruncationFilter,
)
from data_prep.grading import VERDICTS
from data_prep.sources.problems import RunningSumSource

PROSE = """<think>
Let f be a continuous function on the closed interval from 0 to 1 with f(0) = f(1). We want a number c such that
f(c) = f(c + 1/2). Consider g(x) = f(x + 1/2) - f(x), which is continuous on the interval from 0 to 1/2. Now
g(0) = f(1/2) - f(0), and g(1/2) = f(1) - f(1/2) = f(0) - f(1/2) = -g(0). So g changes its sign, unless g(0) = 0,
in which case c = 0 does. By the intermediate value theorem there is a c with g(c) = 0.

Wait, is the value 1/2 special? For 1/n we would add up g over n points: the sum telescopes to f(1) - f(0) = 0, so
not all the terms have the same sign, and the same argument works. For other lengths it can fail.
</think>
Such a number exists for every length 1/n. \\boxed{1/n}"""


def enumeration(last: int) -> str:
    lines = [f"Check whether {n} divides 1001: 1001 = {n} * {1001 // n} + {1001 % n}, so no." for n in range(2, last)]
    return "<think>\n" + "\n".join(lines) + "\n</think>\n\\boxed{7}"


def reason(one: Filter, response: str, **columns: object) -> str | None:
    return one.reason({"id": "p/0", "response": response, **columns})


@pytest.mark.parametrize("verdict", VERDICTS)
def test_correct(verdict: str) -> None:
    assert reason(CorrectFilter(), "x", verdict=verdict) == (None if verdict == "correct" else verdict)


def test_truncated() -> None:
    assert reason(TruncationFilter(), "x", finish_reason="length") == "finish_reason length"
    assert reason(TruncationFilter(), "x", finish_reason="stop") is None
    assert reason(TruncationFilter(), "x") is None


@pytest.mark.parametrize(
    ("response", "expected", "where_required"),
    [
        ("<think>a</think>b", None, None),
        ("a</think>b", None, None),
        ("b", None, "missing"),
        ("<think>\n</think>b", None, "empty"),
        ("</think>b", None, "empty"),
        ("<think>a", "unclosed", "unclosed"),
        ("<think>a</think>b<think>c", "unclosed", "unclosed"),
        ("<think>a</think>b<think>c</think>d", "repeated", "repeated"),
        ("<think>a<think>b</think>c", "repeated", "repeated"),
        ("a</think>b</think>c", "repeated", "repeated"),
        ("a <think>b</think>c", "repeated", "repeated"),
    ],
)
def test_thinking(response: str, expected: str | None, where_required: str | None) -> None:
    assert reason(ThinkingFilter(), response) == expected
    assert reason(ThinkingFilter(required=True), response) == where_required


def test_length() -> None:
    words = LengthFilter(min=2, max=3)
    assert [reason(words, text) for text in ("a", "a b", "a b c")] == ["fewer than 2 words", None, None]
    assert reason(words, "a b c d") == "more than 3 words"
    assert reason(LengthFilter(unit="characters", max=3), "abcd") == "more than 3 characters"
    tokens = LengthFilter(unit="tokens", max=3)
    assert reason(tokens, "a", completion_tokens=4) == "more than 3 tokens"
    assert reason(tokens, "a b c d e", completion_tokens=None) is None


@pytest.mark.parametrize("limits", [{}, {"min": 3, "max": 2}, {"min": 0}])
def test_length_needs_sensible_limits(limits: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        LengthFilter(**limits)


def traces() -> list[str]:
    found = []
    for problem in RunningSumSource(train=50, eval=1).make(0).train:
        start, *terms = problem["prompt"].split("\n")
        total, lines = int(start.removeprefix("Start: ")), []
        for term in terms:
            lines.append(f"{term}:{total}{term[1:]}={total + int(term[1:])}")
            total += int(term[1:])
        found.append("<think>\n" + "\n".join(lines) + f"\n</think>\n\\boxed{{{total}}}")
    return found


def ratio(text: str) -> float:
    return len(text.encode()) / len(zlib.compress(text.encode()))


def test_what_repeats_for_good_reason_passes() -> None:
    for text in [*traces(), PROSE, enumeration(100), enumeration(900), "0, 0, 0, 0", "", "x"]:
        assert reason(RepetitionFilter(), text) is None
    # The distances that the threshold rests on.
    assert max(map(ratio, traces())) < 2
    assert ratio(PROSE) < 3
    assert 6 < ratio(enumeration(900)) < 10


def test_a_stuck_response_is_dropped() -> None:
    one = RepetitionFilter()
    for stuck in ["Wait, let me check this again. " * 30, PROSE * 20, "1+" * 500, "等等，让我再检查一遍。" * 60]:
        assert reason(one, stuck) == "compresses more than 12 times"
    varied = " ".join(Random(0).choices(PROSE.split(), k=2000))
    assert ratio(varied + " so it is not, or is it?" * 12) < 12
    assert reason(one, varied + " so it is not, or is it?" * 12) == "ends in a loop"
    assert reason(one, varied + " so it is not, or is it?" * 12 + " so it is") == "ends in a loop"
    assert reason(one, f"<think>{varied}{' so it is not, or is it?' * 12}</think> \\boxed{{4}}") == "ends in a loop"
    assert reason(one, varied + " so it is not, or is it?" * 3) is None
    assert reason(one, varied) is None


@given(
    st.lists(st.sampled_from("abcdefgh"), max_size=40),
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12),
    st.integers(2, 6),
    st.integers(2, 40),
)
def test_every_loop_of_words_at_the_end_is_found(head: list[str], unit: list[str], repeats: int, least: int) -> None:
    words = head + unit * max(repeats, -(-least // len(unit)))
    one = RepetitionFilter(max_compression=1e9, loop_repeats=repeats, loop_words=least)
    assert reason(one, " ".join(words)) == "ends in a loop"


@given(st.lists(st.sampled_from("ab"), max_size=24), st.integers(2, 4), st.integers(2, 9))
def test_a_loop_is_what_the_definition_says(words: list[str], repeats: int, least: int) -> None:
    one = RepetitionFilter(max_compression=1e9, loop_repeats=repeats, loop_words=least)

    def periodic(period: int, count: int) -> bool:
        tail = words[len(words) - count :]
        return all(tail[i] == tail[i + period] for i in range(count - period))

    expected = any(
        periodic(period, max(period * repeats, least))
        for period in range(1, len(words) + 1)
        if period * repeats <= len(words) and least <= len(words)
    )
    assert (reason(one, " ".join(words)) is not None) == expected


def test_the_union_knows_all_filters() -> None:
    adapter = TypeAdapter(list[Filters])
    given_types = ["correct", "truncated", "thinking", "repetition"]
    found = adapter.validate_python([*({"type": name} for name in given_types), {"type": "length", "max": 9}])
    assert [one.type for one in found] == [*given_types, "length"]
