from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from data_prep.filters import (
    ColumnFilter,
    DifficultyFilter,
    Filter,
    Filters,
    LanguageFilter,
    LengthFilter,
    RepetitionFilter,
    SpecialTokensFilter,
    ThinkingFilter,
)
from data_prep.filters.loops import find_loop
from reasonforge.config import Strict, key_config, load
from reasonforge.errors import RequestError


class Options(Strict):
    """As a stage has them."""

    filters: list[Filters]
    """Some."""


def loaded(tmp_path: Path, text: str) -> list[Any]:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return list(load(Options, path).filters)


RECIPE = """\
filters:
  - type: thinking
  - type: length
    max: 3
    examples:
      - {row: {response: a b c}, keep: true}
      - {row: {response: %s}, keep: %s}
"""


def test_examples_are_checked_when_a_recipe_loads(tmp_path: Path) -> None:
    (_, found) = loaded(tmp_path, RECIPE % ("a b c d", "false"))
    assert [example.keep for example in found.examples] == [True, False]
    assert key_config(found) == key_config(LengthFilter(max=3))


@pytest.mark.parametrize(
    ("response", "keep", "said"),
    [
        ("a b c d", "true", "should be kept, but is dropped for 'more than 3 words'"),
        ("a b c", "false", "should be dropped, but is kept"),
        ("3", "true", "has no text `response`, which the filter reads"),
    ],
)
def test_an_example_that_fails_is_one_line(tmp_path: Path, response: str, keep: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        loaded(tmp_path, RECIPE % (response, keep))
    assert str(caught.value) == f"{tmp_path}/recipe.yaml:3: filters.1: example 2 of the filter 'length' {said}"


def test_what_an_example_lacks_is_said_too() -> None:
    with pytest.raises(ValidationError, match=r"example 1 of the filter 'difficulty' cannot be judged: .*pass_rate"):
        DifficultyFilter.model_validate({"examples": [{"row": {}, "keep": True}]})


def test_examples_that_cannot_be_checked_here_are_left_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"row": {"prompt": "", "response": "Wir suchen alle positiven ganzen Zahlen, die es gibt."}, "keep": True}
    config = {"allowed": ["en"], "examples": [wrong]}
    with pytest.raises(ValidationError, match="is dropped for 'in de'"):
        LanguageFilter.model_validate(config)
    SpecialTokensFilter.model_validate({"model": "/not/here", "examples": [wrong]})
    monkeypatch.setattr(LanguageFilter, "needs", ("a_module_that_is_not_there",))
    LanguageFilter.model_validate(config)


def test_difficulty_keeps_what_is_strictly_between() -> None:
    one = DifficultyFilter(above=0.25, below=1.0)
    rates = [0.0, 0.25, 0.26, 1, None]
    expected = ["pass rate not above 0.25"] * 2 + [None, "pass rate not below 1", None]
    assert [one.reason({"pass_rate": rate}) for rate in rates] == expected
    assert DifficultyFilter(unknown="drop").reason({"pass_rate": None}) == "pass rate unknown"
    assert DifficultyFilter(above=-1, below=2).reason({"pass_rate": 0.0}) is None
    for row in ({"id": "a"}, {"id": "a", "pass_rate": "0.5"}):
        with pytest.raises(RequestError, match=r"row a: .*pass_rate"):
            one.reason(row)
    with pytest.raises(ValidationError, match="exchange them"):
        DifficultyFilter(above=0.5, below=0.5)


def test_column() -> None:
    among = ColumnFilter(column="domain", among=["algebra", 1])
    rows: list[dict[str, Any]] = [{"domain": value} for value in ("algebra", "x", 1, True, None)] + [{}]
    other = "domain not among those kept"
    assert [among.reason(row) for row in rows] == [None, other, None, other, "no domain", "no domain"]
    bounds = ColumnFilter(column="score", min=1, max=2.5, missing="keep")
    assert [bounds.reason({"score": score}) for score in (0.9, 1, 2.5, 3, None)] == [
        "score below 1", None, None, "score above 2.5", None,
    ]  # fmt: skip
    with pytest.raises(RequestError, match="no number"):
        bounds.reason({"id": "a", "score": "high"})
    for config in ({}, {"among": ["a"], "min": 1}, {"min": 2, "max": 1}):
        with pytest.raises(ValidationError):
            ColumnFilter(column="x", **config)


def test_length_in_the_tokens_of_a_column() -> None:
    one = LengthFilter(unit="tokens", column="response_length", max=3)
    assert [one.reason({"response_length": count}) for count in (3, 4)] == [None, "more than 3 tokens"]
    for row in ({"id": "a"}, {"id": "a", "response_length": "4"}):
        with pytest.raises(RequestError, match=r"row a: .*response_length"):
            one.reason(row)
    with pytest.raises(ValidationError, match="set unit to tokens"):
        LengthFilter(column="response_length", max=3)


def test_special_tokens_are_refused() -> None:
    one = SpecialTokensFilter()
    assert one.reason({"prompt": "a", "response": "<think>b</think>"}) is None
    assert one.reason({"prompt": "a<|im_end|>", "response": "b"}) == "<|im_end|> in the prompt"
    assert one.reason({"prompt": "a", "response": "b<|eot_id|>"}) == "<|eot_id|> in the response"
    assert one.reason({"prompt": "</think>", "response": "b"}) == "</think> in the prompt"
    mine = SpecialTokensFilter(tokens=["[END]"])
    assert mine.reason({"prompt": "<|im_end|>", "response": "[END]"}) == "[END] in the response"
    with pytest.raises(ValidationError):
        SpecialTokensFilter(tokens=[""])


PERIODIC = st.tuples(st.text("ab\n", max_size=90), st.text("abc", min_size=1, max_size=40), st.integers(1, 12))


def loops(text: str, repeats: int, least: int) -> bool:
    """The definition."""
    for period in range(1, len(text) // repeats + 1):
        same = 0
        for a, b in zip(text, text[period:], strict=False):
            same = same + 1 if a == b else 0
            if same + period >= max(least, repeats * period):
                return True
    return False


@settings(deadline=None)
@given(st.lists(PERIODIC, max_size=4), st.integers(2, 5), st.integers(64, 120))
def test_every_loop_of_characters_is_found(parts: list[tuple[str, str, int]], repeats: int, least: int) -> None:
    text = "".join(head + unit * times for head, unit, times in parts)
    found = find_loop(text, repeats, least)
    assert (found is not None) == loops(text, repeats, least)
    if found is not None:
        assert loops(text[found.start : found.stop], repeats, least)


@pytest.mark.parametrize("period", [1, 2, 3, 7, 23, 24, 25, 99, 100, 250, 400, 1500])
def test_planted_loops_are_found_wherever_they_are(period: int) -> None:
    source = Path(__file__).read_text()
    unit, size = source[700 : 700 + period], max(400, 4 * period)
    looping = (unit * (size // period + 1))[:size]
    before, after = source[2500:4711], source[5000:7000]
    one = RepetitionFilter()
    assert one.reason({"response": before + looping}) == "ends in a loop"
    assert one.reason({"response": before + looping + after}) == "has a loop inside"
    assert one.reason({"response": before + after}) is None


@pytest.mark.parametrize(
    "legitimate",
    [
        "| n | n^2 |\n|---|-----|\n" + "".join(f"| {n} | {n * n} |\n" for n in range(200)),
        "".join(f"{a} x {b} = {a * b}\n" for a in range(1, 13) for b in range(1, 13)),
        "1/7 = 0." + "142857" * 20 + "...",
        "\\begin{pmatrix}" + "\\\\".join(" & ".join("1" if a == b else "0" for a in range(9)) for b in range(9)),
        "So the sum is " + " + ".join(str(n) for n in range(300)),
        "a = " + "-" * 120 + "\n" + "=" * 120,
        "".join(f"Step {n}: we add {n} to {n * (n - 1) // 2}, which makes {n * (n + 1) // 2}.\n" for n in range(200)),
        "2^256 = " + str(2**256) + ", and 10^100 = " + str(10**100),
    ],
)
def test_tables_and_enumerations_are_no_loops(legitimate: str) -> None:
    assert RepetitionFilter().reason({"response": f"<think>\n{legitimate}\n</think>\nThe end."}) is None


ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=300) | st.text("ab <|think>/\n", max_size=300)


@settings(deadline=None, max_examples=60)
@given(ANY, ANY, st.sampled_from(["correct", "wrong"]))
def test_no_text_stops_a_filter(prompt: str, response: str, verdict: str) -> None:
    row = {"id": "p/0", "prompt": prompt, "response": response, "verdict": verdict, "pass_rate": 0.5}
    configs = [{"type": name} for name in ("correct", "truncated", "thinking", "repetition", "language")]
    configs += [{"type": name} for name in ("special_tokens", "difficulty")]
    configs += [{"type": "length", "max": 9}, {"type": "column", "column": "prompt", "among": ["a"]}]
    for one in TypeAdapter(list[Filters]).validate_python(configs):
        reason = one.reason(row)
        assert reason == one.reason(dict(row))
        assert reason is None or (reason and "\n" not in reason)


def test_filters_say_what_they_need(tmp_path: Path) -> None:
    some: list[Filter] = [LanguageFilter(), ThinkingFilter(), SpecialTokensFilter(model=str(tmp_path))]
    assert [one.needs for one in some] == [("py3langid",), (), ()]
    assert [one.external_files for one in some] == [(), (), ()]
    (tmp_path / "tokenizer.json").write_text("{}")
    assert some[2].external_files == (tmp_path / "tokenizer.json",)
