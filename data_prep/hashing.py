"""Texts as arrays of 64-bit hashes of their words or characters, for deduplication and decontamination.

The work is done by kernels that numba compiles where it is installed; without it numpy gives the same arrays, slower.
The hashes only find candidates: whoever calls compares the text itself before it says that something is equal.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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
def compiled(kernel: Callable[..., Any]) -> Callable[..., Any] | None:
    """A kernel compiled by numba, kept on disk for the next process where a directory can be written; None without it.

    A kernel is a function of arrays and integers that works on uint64 only with uint64: Python's own integers would
    make floating-point numbers of them.
    """
    try:
        numba = importlib.import_module("numba")
    except ImportError:
        return None
    try:
        return numba.njit(cache=True, nogil=True)(kernel)  # type: ignore[no-any-return]
    except RuntimeError:  # no directory for the cache can be written
        return numba.njit(nogil=True)(kernel)  # type: ignore[no-any-return]


@functools.cache
def constants() -> "Hashes":
    """What the kernels compute with: BYTE, WORD, MIX, SHIFT, 1 and 32 (a space) as uint64."""
    import numpy as np

    return np.array([BYTE, WORD, MIX, SHIFT, 1, 32], np.uint64)


def split_units(texts: Sequence[str], unit: Unit = "words") -> Units:
    """The units of each text. Words are what stands between white space, as `str.split` has it."""
    if unit == "characters":
        return _characters(texts)
    kernel = compiled(_split_words)
    if kernel is None:
        return _words(texts)
    # Other white space than ASCII's is left to Python: it is rare, and so is text that is not ASCII.
    encoded = [
        text.encode() if text.isascii() else " ".join(text.split()).encode("utf-8", "surrogatepass") for text in texts
    ]
    return _split_encoded(encoded, kernel)


def split_one(text: bytes, unit: Unit) -> Units:
    """The units of one text that comes from `Units.text`; the same as `split_units`, with less around it."""
    kernel = compiled(_split_words)
    if kernel is None or unit == "characters":
        return split_units([text.decode("utf-8", "surrogatepass")], unit)
    return _split_encoded([text], kernel)


def run_hashes(units: Units, size: int) -> "Hashes":
    """A hash of the run of `size` units that starts at each unit; of a text of fewer units the whole is the only run.

    As long as `units.hashes`; what stands where no run starts means nothing.
    """
    import numpy as np

    runs = _empty(len(units.hashes))
    if kernel := compiled(_roll):
        kernel(units.hashes, units.offsets, size, constants(), runs)
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


def _split_encoded(encoded: list[bytes], kernel: Callable[..., Any]) -> Units:
    import numpy as np

    data = np.frombuffer(b"".join(encoded), np.uint8)
    ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    most = int(np.count_nonzero(data <= 32)) + len(encoded) + 1
    text, starts, hashes = np.empty(len(data) + len(encoded), np.uint8), np.empty(most + 1, np.int64), _empty(most)
    rows, offsets = np.zeros(len(encoded) + 1, np.int64), np.zeros(len(encoded) + 1, np.int64)
    kernel(data, ends, constants(), _clean(), text, rows, starts, hashes, offsets)
    return Units(text[: rows[-1]], rows, starts[: offsets[-1] + 1], hashes[: offsets[-1]], offsets)


@functools.cache
def _clean() -> "Hashes":
    """Each byte, but a space for white space."""
    import numpy as np

    return np.array([32 if byte < 128 and chr(byte).isspace() else byte for byte in range(256)], np.uint64)


def _empty(length: int) -> "Hashes":
    import numpy as np

    return np.empty(length, np.uint64)


def _split_words(  # type: ignore[no-untyped-def]
    data, ends, constants, clean, text, rows, starts, hashes, offsets
):
    """A kernel. Its inner loop does the same for every byte, as a branch at each end of a word costs more; what it
    counts is unsigned, as numba asks of other indices whether they count from the end."""
    multiplier, mix, shift, one, blank = constants[0], constants[2], constants[3], constants[4], constants[5]
    zero = one - one
    begin, out, word = 0, zero, zero
    starts[0] = 0
    for row in range(len(ends)):
        gap, value = one, one
        for at in range(begin, ends[row]):
            byte = clean[data[at]]
            space = one if byte == blank else zero
            text[out] = byte
            hashes[word] = value
            out += one - (space & gap)
            starts[word + one] = out + one - space
            word += space & (one - gap)
            value = one if byte == blank else value * multiplier + byte
            gap = space
        if gap == zero:
            text[out] = blank
            hashes[word] = value
            out += one
            word += one
        begin = ends[row]
        rows[row + 1] = out
        offsets[row + 1] = word
    starts[word] = out
    for number in range(word):
        value = (hashes[number] ^ (hashes[number] >> shift)) * mix
        hashes[number] = value ^ (value >> shift)


def _roll(hashes, offsets, size, constants, runs):  # type: ignore[no-untyped-def]  # a kernel
    multiplier = constants[1]
    leaving = multiplier // multiplier
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
