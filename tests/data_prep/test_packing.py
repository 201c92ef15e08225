from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.packing import Packing, pack
from reasonforge.errors import RequestError


@st.composite
def packable(draw: st.DrawFn) -> tuple[list[int], int]:
    """A capacity, and lengths that fit; often many of one length, so that they are placed in bulk."""
    capacity = draw(st.integers(1, 300))
    length = st.integers(1, capacity)
    some = draw(st.lists(length, max_size=40))
    many = draw(st.lists(st.tuples(length, st.integers(1, 50)), max_size=4))
    lengths = some + [one for one, count in many for _ in range(count)]
    return draw(st.permutations(lengths)) if len(lengths) < 60 else lengths, capacity


def packed(lengths: list[int], capacity: int, seed: int = 0) -> Packing:
    return pack(np.array(lengths, np.int64), capacity, seed=seed)


def contents(packing: Packing) -> list[list[int]]:
    return [rows.tolist() for rows in packing]


def first_fit_decreasing(lengths: Any, capacity: int) -> int:
    """How many bins the textbook's algorithm needs."""
    rooms = np.full(len(lengths), capacity)
    for length in sorted(lengths.tolist(), reverse=True):
        rooms[np.argmax(rooms >= length)] -= length
    return int((rooms < capacity).sum())


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[int]:
    """How full the bins are that the textbook's algorithm makes, one row after the other."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [index for index, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda index: rooms[index])] -= length
        else:
            rooms.append(capacity - length)
    return [capacity - room for room in rooms]


def traces(rows: int, seed: int, capacity: int = 16_384) -> Any:
    """Lengths like those of reasoning traces: log-normal."""
    return np.clip(np.random.default_rng(seed).lognormal(7.6, 1.0, rows).astype(np.int64), 16, capacity)


@settings(deadline=None)
@given(packable(), st.integers(0, 2**32))
def test_every_row_is_in_one_bin_that_holds_it(case: tuple[list[int], int], seed: int) -> None:
    lengths, capacity = case
    packing = packed(lengths, capacity, seed)
    bins = contents(packing)
    assert sorted(row for rows in bins for row in rows) == list(range(len(lengths)))
    assert all(rows == sorted(rows) and rows for rows in bins), "the order inside a bin is fixed"
    filled = [sum(lengths[row] for row in rows) for rows in bins]
    assert filled == packing.filled.tolist()
    assert max(filled, default=0) <= capacity


@settings(deadline=None)
@given(packable())
def test_bins_are_as_full_as_those_of_best_fit_row_by_row(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    assert sorted(packed(lengths, capacity).filled.tolist()) == sorted(best_fit_decreasing(lengths, capacity))


@settings(deadline=None)
@given(packable())
def test_the_figures_are_those_of_the_bins(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    packing = packed(lengths, capacity)
    summary = packing.summary()
    sizes = [len(rows) for rows in packing]
    assert summary["tokens"] == sum(lengths)
    assert summary["tokens"] + summary["wasted"] == summary["bins"] * capacity == len(sizes) * capacity
    assert summary["most_rows_in_a_bin"] == max(sizes, default=0)
    assert summary["longest_row"] == max(lengths, default=0)
    assert summary["least_filled_bin"] == min(packing.filled.tolist(), default=0)
    assert packing.efficiency == pytest.approx(sum(lengths) / (len(sizes) * capacity) if sizes else 1)


@settings(deadline=None)
@given(packable(), st.integers(0, 5))
def test_the_same_rows_and_seed_give_the_same_bins(case: tuple[list[int], int], seed: int) -> None:
    lengths, capacity = case
    assert contents(packed(lengths, capacity, seed)) == contents(packed(lengths, capacity, seed))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_no_worse_than_first_fit_decreasing(seed: int) -> None:
    lengths = traces(2_000, seed)
    tokens = int(lengths.sum()) / 16_384
    ours, theirs = len(pack(lengths, 16_384)), first_fit_decreasing(lengths, 16_384)
    assert tokens / ours >= tokens / theirs - 0.0005


def test_the_bins_are_pinned() -> None:
    """A change of them would change the training data of everyone, so it has to be meant."""
    lengths = [9, 3, 5, 5, 2, 7, 1, 8, 5, 3]
    assert contents(packed(lengths, 10)) == [[2, 3], [1, 5], [7], [0, 6], [4, 8, 9]]
    assert contents(packed(lengths, 10, seed=1)) == [[1, 5], [4, 8, 9], [0, 6], [2, 3], [7]]


def test_a_seed_changes_the_order_of_the_bins_alone() -> None:
    lengths = traces(3_000, 1)
    one, other = contents(pack(lengths, 16_384, seed=1)), contents(pack(lengths, 16_384, seed=2))
    assert one != other
    assert sorted(one) == sorted(other)


def test_short_rows_are_spread_over_the_whole_order() -> None:
    """Best fit ends with the bins that hold most rows; shuffled, every tenth of the bins has about as many."""
    lengths = traces(30_000, 3)
    sizes = np.array([len(rows) for rows in pack(lengths, 16_384)])
    tenths = [part.mean() for part in np.array_split(sizes, 10)]
    assert max(tenths) < 1.3 * min(tenths)


def test_equal_rows_fill_bins_in_bulk() -> None:
    assert Counter(map(len, contents(packed([3] * 1001, 10)))) == {3: 333, 2: 1}


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.int64])
def test_any_integers_give_the_same_bins(kind: Any) -> None:
    lengths = [200, 100, 7, 50, 50, 255]
    assert contents(pack(np.array(lengths, kind), 100_000)) == contents(packed(lengths, 100_000))
    assert contents(pack(np.array(lengths, kind), 300)) == contents(packed(lengths, 300))


@pytest.mark.parametrize(
    ("lengths", "capacity", "message"),
    [
        ([3, 4, 11, 12], 10, "row 2: has 11 tokens, a bin holds 10; drop it or make the bins larger"),
        ([3, 0, 11], 10, "row 1: has no token to learn from; drop it"),
        ([3, -4], 10, "row 1: has no token to learn from; drop it"),
        ([1], 0, "capacity: bins of 0 tokens hold nothing; it is 1 or more"),
    ],
)
def test_what_cannot_be_packed_is_named(lengths: list[int], capacity: int, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        packed(lengths, capacity)
    assert str(caught.value) == message


def test_lengths_that_are_not_integers_are_refused() -> None:
    with pytest.raises(TypeError):
        pack(np.array([1.5, 2.0]), 10)
