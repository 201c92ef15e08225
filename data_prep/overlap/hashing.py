"""Texts as arrays of 64-bit hashes of their words or characters, for deduplication and decontamination.

The work is done by kernels that numba compiles where it is installed; without it numpy gives the same arrays, slower.
The hashes only find candidates: whoever calls compares the text itself before it says that something is equal.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from data_prep.overlap.native import compiled

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
"""Bytes of a word that are hashed at once."""
BLOCK = 64
"""Bytes that are looked at together for the ends of words; a text that the kernels read has as many behind its end."""


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
    text, starts, hashes = np.empty(len(data) + texts + BLOCK, np.uint8), np.empty(most + 1, np.int64), _empty(most)
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
    """Short loops, of many bytes at once where the processor can: none has a branch at the end of each word.

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
        first, word = word, mark_words(text, out, out + end, word, constants, starts)  # type: ignore[no-untyped-call]
        hash_words(text, starts, first, word, weights, constants, hashes)  # type: ignore[no-untyped-call]
        begin, out = ends[row + 1], out + end
        rows[row + 1] = out
        offsets[row + 1] = word


def mark_words(text, begin, end, word, constants, starts):  # type: ignore[no-untyped-def]
    """Put behind each space where the next word starts, from this number of words on, and return the number then."""
    one = constants[4]
    for block in range(begin, end, 64):
        piece, spaces = text[block : block + 64], one - one
        for place in range(64):
            spaces |= np.uint64(piece[place] == 32) << np.uint64(place)
        if end - block < 64:
            spaces &= (one << np.uint64(end - block)) - one
        while spaces:
            word += 1
            starts[word] = block + 1 + ones((spaces - one) & ~spaces)  # type: ignore[no-untyped-call]
            spaces &= spaces - one
    return word


def ones(bits):  # type: ignore[no-untyped-def]
    """How many bits of a uint64 are set: compilers know this way of counting them and have one instruction for it."""
    one = np.uint64(1)
    two, four, most = one + one, np.uint64(4), np.uint64(56)
    fives, threes = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
    bits -= (bits >> one) & fives
    bits = (bits & threes) + ((bits >> two) & threes)
    bits = (bits + (bits >> four)) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((bits * np.uint64(0x0101010101010101)) >> most)


def hash_words(text, starts, first, last, weights, constants, hashes):  # type: ignore[no-untyped-def]
    """The hash of some words, of STEP bytes at once: what stands behind a word's end counts zero times."""
    mix, shift, one = constants[2], constants[3], constants[4]
    for number in range(first, last):
        at, left, value = starts[number], starts[number + 1] - starts[number] - 1, one
        while left > 0:
            weight, piece, sum = weights[min(left, 16)], text[at : at + 16], one - one
            for place in range(16):
                sum += piece[place] * weight[place]
            value = value * weight[16] + sum
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
    text, lengths, starts, hashes, runs, offsets, size, weights, constants, table
):
    """As `shared`, of two texts that are not yet cut into words, of so many bytes, one behind the other in `text`."""
    words, begin, starts[0] = 0, 0, 0
    for row in range(2):
        end = begin + lengths[row]
        words = mark_words(text, begin, end, words, constants, starts)  # type: ignore[no-untyped-call]
        offsets[row + 1], begin = words, end
    hash_words(text, starts, 0, words, weights, constants, hashes)  # type: ignore[no-untyped-call]
    roll(hashes, offsets, size, constants, runs)  # type: ignore[no-untyped-call]
    return shared(text, starts, runs, offsets, size, table, lengths)  # type: ignore[no-untyped-call]


def shared(text, starts, runs, offsets, size, table, result):  # type: ignore[no-untyped-def]
    """How many shingles two texts share; the last of `result` is how many they have together. None of them is empty.

    `table` becomes a hash set of shingles: 1 + the place of one of the first text, which turns negative once the other
    has it too, or of the other behind those of the first. Shingles are equal where their bytes are.
    """
    middle, last = offsets[1], offsets[2]
    count, others = max(1, middle - size + 1), max(1, last - middle - size + 1)
    width = 1
    while width < 2 * (count + others):
        width *= 2
    for place in range(width):
        table[place] = 0
    both, together, before, known = 0, 0, -1, 0  # known: up to where the text is as it is at the shingle `before`
    for number in range(count + others):
        mine = number < count
        at = number if mine else number - count + middle
        begin, end = starts[at], starts[min(at + size, middle if mine else last)]
        slot, same = np.int64(runs[at] & np.uint64(width - 1)), 0
        while table[slot] != 0:
            held = abs(table[slot]) - 1
            its = held if held < count else held - count + middle
            start, stop = starts[its], starts[min(its + size, middle if held < count else last)]
            # The shingles behind two that are equal are, as far as is known; not so a text's first.
            same = max(0, known - begin) if held == before + 1 and held > 0 and held != count and number != count else 0
            more = 64 if stop - start == end - begin else 0
            while more == 64 and same < end - begin:
                more = alike(text, begin + same, start + same)  # type: ignore[no-untyped-call]
                same += more
            if more > 0 and same >= end - begin:
                break
            slot = (slot + 1) & (width - 1)
        before, known = abs(table[slot]) - 1, begin + same
        if table[slot] == 0:
            table[slot] = number + 1
            together += 1
        elif not mine and 0 < table[slot] <= count:
            table[slot] = -table[slot]
            both += 1
    result[len(result) - 1] = together
    return both


def alike(text, one, other):  # type: ignore[no-untyped-def]
    """How many bytes are the same from two places on, 64 at most."""
    first, second, different = text[one : one + 64], text[other : other + 64], np.uint64(0)
    for place in range(64):
        different |= np.uint64(first[place] != second[place]) << np.uint64(place)
    return ones((different - np.uint64(1)) & ~different)  # type: ignore[no-untyped-call]


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

    return np.cumsum(np.fromiter(chain((0,), lengths), np.int64))
