"""The arrays of words and their hashes are what Python's own words say, with numba and without."""

import sys
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.overlap.hashing import Unit, run_hashes, split_units
from data_prep.overlap.native import compiled

AWKWARD = ["", " ", "a", " a  b\tc\n", "\0a a\0 a \0", "héllo  wörld\u3000x", "日本語 テキスト", "x" * 5000, "\ud800 q",
           "a\x1cb\x85c\xa0d\u2028e", "\u200b a", "one", "🙂🙂 🙂"]  # fmt: skip
TEXTS = st.lists(st.text(st.characters() | st.sampled_from(" \n\t\x0b\x1fab"), max_size=40), max_size=6)


@pytest.fixture(params=["numba", "numpy"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "numba":
        pytest.importorskip("numba")
        yield request.param
        return
    monkeypatch.setitem(sys.modules, "numba", None)
    compiled.cache_clear()
    yield request.param
    monkeypatch.undo()
    compiled.cache_clear()


def check(texts: list[str]) -> None:
    units = split_units(texts)
    for row, text in enumerate(texts):
        begin, end = units.offsets[row], units.offsets[row + 1]
        starts = units.starts[begin : end + 1]
        found = [bytes(units.text[one:two]) for one, two in pairwise(starts)]
        assert found == [f"{word} ".encode("utf-8", "surrogatepass") for word in text.split()]
        assert bytes(units.text[units.rows[row] : units.rows[row + 1]]) == b"".join(found)


def test_words_are_those_of_split(path: str) -> None:
    for texts in ([], AWKWARD, AWKWARD[::-1], ["", ""]):
        check(texts)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS)
def test_words_of_any_text(path: str, texts: list[str]) -> None:
    check([text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass") for text in texts])


def test_equal_words_have_equal_hashes_and_others_others(path: str) -> None:
    words = [f"w{number}" for number in range(2000)] + ["a", "aa", "a\0", "\0a", "ab", "ba"]
    first, second = split_units([" ".join(words)]), split_units([word + "\n" for word in words])
    assert (first.hashes == second.hashes).all()
    assert len(np.unique(first.hashes)) == len(words)


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_numba_and_numpy_give_the_same(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    texts = [*AWKWARD, "a b c d e f g " * 50]
    fast = split_units(texts, unit)
    fast_runs = {size: run_hashes(fast, size) for size in (1, 3, 13)}
    monkeypatch.setitem(sys.modules, "numba", None)
    compiled.cache_clear()
    slow = split_units(texts, unit)
    for name in ("text", "rows", "starts", "hashes", "offsets"):
        assert (getattr(fast, name) == getattr(slow, name)).all(), name
    for size, runs in fast_runs.items():
        others = run_hashes(slow, size)
        for begin, end in pairwise(fast.offsets):
            stop = max(min(begin + 1, end), end - size + 1)
            assert (runs[begin:stop] == others[begin:stop]).all()
    monkeypatch.undo()
    compiled.cache_clear()
