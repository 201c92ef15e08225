"""Texts as arrays of 64-bit hashes of their words or characters, for deduplication and decontamination.

The work is done by kernels that numba compiles where it is installed; without it numpy gives the same arrays, slower.
The hashes only find candidates: whoever calls compares the text itself before it says that something is equal.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from data_prep.native import compiled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Hashes = NDArray[np.uint64]
    Places = NDArray[np.int64]

Unit = Literal["words", "characters"]

BYTE, WORD, MIX, SHIFT = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD, 32
"""Odd 64-bit multipliers (the golden ratio; Degski's and MurmurHash3's mixers) for the bytes of a word, for the units
of a run, and for mixing; and how far mixing shifts."""
STEP = 16
"""Bytes of a word that are hashed at once; a text that the kernels read has as many behind its end."""


@dataclass(frozen=True)
class Units:
    """The words (or characters) of some texts, one text after the other."""

    text: "Bytes"
    """The texts as UTF-8, with one space after each word and no other white space between words."""
    rows: "Places"
    """Where each text starts in `text`, and where the last one ends; texts + 1."""
    starts: "Places"
    """Where each unit starts in `text`, and where the last one ends; units + 1."""
    hashes: "Hashes"
    """A hash of each unit."""
    offsets: "Places"
    """Which unit each text starts with, and the number of units; texts + 1."""


@functools.cache
def constants() -> "Hashes":
    """What the kernels compute with: BYTE, WORD, MIX, SHIFT and 1 as uint64."""
    import numpy as np

    return np.array([BYTE, WORD, MIX, SHIFT, 1], np.uint64)


def split_units(texts: Sequence[str], unit: Unit = "words") -> Units:
    """The units of each text. Words are what stands between white space, as `str.split` has it."""
    if unit == "characters":
        return _characters(texts)
    split = compiled(_split_words)
    if split is None:
        return _words(texts)
    if (whole := "".join(texts)).isascii():
        return _split_encoded(whole.encode(), _offsets(map(len, texts)), split)
    # Other white space than ASCII's is left to Python: it is rare, and so is text that is not ASCII.
    encoded = [
        text.encode() if text.isascii() else " ".join(text.split()).encode("utf-8", "surrogatepass") for text in texts
    ]
    return _split_encoded(b"".join(encoded), _offsets(map(len, encoded)), split)


def run_hashes(units: Units, size: int) -> "Hashes":
    """A hash of the run of `size` units that starts at each unit; of a text of fewer units the whole is the only run.

    As long as `units.hashes`; what stands where no run starts means nothing.
    """
    import numpy as np

    runs = _empty(len(units.hashes))
    if rolling := compiled(roll):
        rolling(units.hashes, units.offsets, size, constants(), runs)
        return runs
    multiplier = np.uint64(WORD)
    count = len(runs) - size + 1
    if count > 0:
        runs[:] = 0
        for place in range(size):
            runs[:count] = runs[:count] * multiplier + units.hashes[place : place + count]
    lengths = np.diff(units.offsets)
    for row in np.flatnonzero((lengths > 0) & (lengths < size)):
        total = np.zeros(1, np.uint64)
        for value in units.hashes[units.offsets[row] : units.offsets[row + 1]]:
            total = total * multiplier + value
        runs[units.offsets[row]] = total[0]
    return runs


def mixed(values: "Hashes") -> "Hashes":
    """Hashes whose every bit depends on all bits of the value."""
    import numpy as np

    shift = np.uint64(SHIFT)
    values = (values ^ (values >> shift)) * np.uint64(MIX)
    return values ^ (values >> shift)


def _split_encoded(data: bytes, ends: "Places", split: Callable[..., int]) -> Units:
    import numpy as np

    texts = len(ends) - 1
    most = (len(data) + texts) // 2 + 1
    text, starts, hashes = np.empty(len(data) + texts + STEP, np.uint8), np.empty(most + 1, np.int64), _empty(most)
    rows, offsets = np.zeros(texts + 1, np.int64), np.zeros(texts + 1, np.int64)
    split(np.frombuffer(data, np.uint8), ends, weights(), constants(), text, rows, starts, hashes, offsets)
    return Units(text[: rows[-1]], rows, starts[: offsets[-1] + 1], hashes[: offsets[-1]], offsets)


@functools.cache
def weights() -> "Hashes":
    """What each byte of a part of a word counts, by the part's length, and last what all before it counts."""
    import numpy as np

    powers = [pow(BYTE, power, 1 << 64) for power in range(STEP + 1)]
    table = [powers[:length][::-1] + [0] * (STEP - length) + [powers[length]] for length in range(STEP + 1)]
    return np.array(table, np.uint64)


def _empty(length: int) -> "Hashes":
    import numpy as np

    return np.empty(length, np.uint64)


def _split_words(  # type: ignore[no-untyped-def]
    data, ends, weights, constants, text, rows, starts, hashes, offsets
):
    """Three short loops a text do without a branch at the end of each word, which costs more than they do.

    They go over slices from their beginning, or by unsigned places, as of others numba asks if they count from the end.
    """
    begin, out, word = 0, 0, 0
    starts[0] = 0
    for row in range(len(ends) - 1):
        size = ends[row + 1] - begin
        given, made = data[begin : begin + size], text[out : out + size + 1]
        for at in range(size):
            byte = given[at]
            made[at] = 32 if ((byte >= 9) & (byte <= 13)) | ((byte >= 28) & (byte <= 31)) else byte
        made[size] = 32
        end, twice = size + 1, made[0] == 32
        for at in range(size):
            twice |= (made[at] == 32) & (made[at + 1] == 32)
        if twice:
            end, gap = 0, True
            for at in range(size + 1):
                made[end] = made[at]
                blank = made[at] == 32
                end += not (blank and gap)
                gap = blank
        first = word
        for at in range(end):
            starts[np.uint64(word + 1)] = out + at + 1
            word += made[at] == 32
        hash_words(text, starts, first, word, weights, constants, hashes)  # type: ignore[no-untyped-call]
        begin, out = ends[row + 1], out + end
        rows[row + 1] = out
        offsets[row + 1] = word


def hash_words(text, starts, first, last, weights, constants, hashes):  # type: ignore[no-untyped-def]
    """The hash of some words, of STEP bytes at once: what stands behind a word's end counts zero times."""
    mix, shift, one = constants[2], constants[3], constants[4]
    for number in range(first, last):
        at, left, value = starts[number], starts[number + 1] - starts[number] - 1, one
        while left > 0:
            weight = weights[min(left, 16)]
            value *= weight[16]
            for place in range(16):
                value += text[np.uint64(at + place)] * weight[place]
            at += 16
            left -= 16
        value = (value ^ (value >> shift)) * mix
        hashes[number] = value ^ (value >> shift)


def roll(hashes, offsets, size, constants, runs):  # type: ignore[no-untyped-def]
    """The hash of each run of units, from that of the one before."""
    multiplier, leaving = constants[1], constants[4]
    for _ in range(size):
        leaving = leaving * multiplier
    for row in range(len(offsets) - 1):
        begin, end = offsets[row], offsets[row + 1]
        value = multiplier - multiplier
        for at in range(begin, min(begin + size, end)):
            value = value * multiplier + hashes[at]
        if begin < end:
            runs[begin] = value
        for at in range(begin + size, end):
            value = value * multiplier + hashes[at] - leaving * hashes[at - size]
            runs[at - size + 1] = value


def shared_words(  # type: ignore[no-untyped-def]
    text, starts, runs, first, units, size, other, length, weights, constants, other_starts, hashes, other_runs, table,
    result
):  # fmt: skip
    """As `shared`, where the other text is not yet cut into words."""
    words, other_starts[0] = 0, 0
    for at in range(length):
        other_starts[words + 1] = at + 1
        words += other[at] == 32
    hash_words(other, other_starts, 0, words, weights, constants, hashes)  # type: ignore[no-untyped-call]
    result[0], result[1] = 0, words
    roll(hashes, result, size, constants, other_runs)  # type: ignore[no-untyped-call]
    return shared(  # type: ignore[no-untyped-call]
        text, starts, runs, first, units, size, other, other_starts, other_runs, words, table, result
    )


def shared(  # type: ignore[no-untyped-def]
    text, starts, runs, first, units, size, other_text, other_starts, other_runs, other_units, table, result
):
    """How many shingles two texts share; `result` is how many they have together.

    `table` becomes a hash set of shingles: 1 + the place of one of the first text, which turns negative once the other
    has it too, or of the other behind those of the first. Shingles are equal where their bytes are.
    """
    count, others = max(1, units - size + 1), max(1, other_units - size + 1)
    width = 1
    while width < 2 * (count + others):
        width *= 2
    for place in range(width):
        table[place] = 0
    both, together, before, end_before = 0, 0, -1, 0
    for number in range(count + others):
        mine = number < count
        at = number + first if mine else number - count
        begin = starts[at] if mine else other_starts[at]
        end = starts[min(at + size, first + units)] if mine else other_starts[min(at + size, other_units)]
        slot = np.int64((runs[at] if mine else other_runs[at]) & np.uint64(width - 1))
        while table[slot] != 0:
            held = abs(table[slot]) - 1
            theirs = held - count
            start = starts[first + held] if held < count else other_starts[theirs]
            stop = (
                starts[first + min(held + size, units)]
                if held < count
                else other_starts[min(theirs + size, other_units)]
            )
            # Of the next two after two that are equal, all but the last unit is known to be; not so in the other text's
            # first, before which there is none.
            same = end_before - begin if held == before + 1 and 0 < held < count and number != count else 0
            if stop - start == end - begin:
                while same < end - begin and (text[begin + same] if mine else other_text[begin + same]) == (
                    text[start + same] if held < count else other_text[start + same]
                ):
                    same += 1
            if same == end - begin:
                break
            slot = (slot + 1) & (width - 1)
        before, end_before = abs(table[slot]) - 1, end
        if table[slot] == 0:
            table[slot] = number + 1
            together += 1
        elif not mine and 0 < table[slot] <= count:
            table[slot] = -table[slot]
            both += 1
    result[0] = together
    return both


def _words(texts: Sequence[str]) -> Units:
    """As the kernel: the hash of a word is BYTE ** bytes + the sum of byte times power, from prefix sums."""
    import numpy as np

    words = [text.split() for text in texts]
    encoded = ["".join(f"{word} " for word in row).encode("utf-8", "surrogatepass") for row in words]
    data = np.frombuffer(b"".join(encoded), np.uint8)
    spaces = np.flatnonzero(data == 32)
    starts = np.concatenate([[0], spaces + 1])
    powers, inverses = (_powers(base, len(data) + 1) for base in (BYTE, pow(BYTE, -1, 1 << 64)))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(data * inverses[:-1])])
    values = powers[spaces - starts[:-1]] + (sums[spaces] - sums[starts[:-1]]) * powers[spaces - 1]
    return Units(data, _offsets(map(len, encoded)), starts, mixed(values), _offsets(map(len, words)))


def _characters(texts: Sequence[str]) -> Units:
    import numpy as np

    joined = [" ".join(text.split()) for text in texts]
    data = np.frombuffer("".join(joined).encode("utf-8", "surrogatepass"), np.uint8)
    points = np.frombuffer("".join(joined).encode("utf-32-le", "surrogatepass"), np.uint32)
    starts = np.append(np.flatnonzero(data & 0xC0 != 0x80), len(data))
    offsets = _offsets(map(len, joined))
    return Units(data, starts[offsets], starts, mixed(points * np.uint64(BYTE)), offsets)


def _powers(base: int, count: int) -> "Hashes":
    import numpy as np

    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, out=powers)


def _offsets(lengths: Any) -> "Places":
    import numpy as np

    return np.concatenate([[0], np.cumsum(np.fromiter(lengths, np.int64))]).astype(np.int64)
