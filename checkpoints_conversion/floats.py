"""Weights as numbers: blocks of bytes to float32 and back, and counts of NaN and infinities.

`verification`, `merging` and `casting` use it; numpy is imported when they do. bfloat16 is the upper half of float32.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[Any, np.dtype[np.float32]]

_EXPONENT = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
_MANTISSA = {"F32": 0x007FFFFF, "F16": 0x03FF, "BF16": 0x007F}


def decode(block: memoryview, dtype: str) -> "Floats":
    """The numbers of a block, exactly, as float32 in an array of its own."""
    import numpy as np

    if dtype == "BF16":
        return (np.frombuffer(block, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(block, "<f2" if dtype == "F16" else "<f4").astype("<f4")


def encode(numbers: "Floats", dtype: str) -> bytes:
    """float32 numbers as bytes of a type, rounded to the nearest, ties to even; NaN stays NaN."""
    import numpy as np

    if dtype == "F32":
        return numbers.astype("<f4").tobytes()
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return numbers.astype("<f2").tobytes()
    bits = numbers.astype("<f4").view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(numbers), (bits >> 16) | 0x40, rounded).astype("<u2").tobytes()


def finite(numbers: "Floats") -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Which numbers are neither NaN nor infinite."""
    import numpy as np

    return np.isfinite(numbers)


def count_bad(block: memoryview, dtype: str) -> tuple[int, int]:
    """How many numbers of a block are NaN, and how many infinite."""
    import numpy as np

    bits = np.frombuffer(block, "<u4" if dtype == "F32" else "<u2")
    special = bits[(bits & _EXPONENT[dtype]) == _EXPONENT[dtype]]
    infinite = int(np.count_nonzero((special & _MANTISSA[dtype]) == 0))
    return len(special) - infinite, infinite


def averaging(dtype: str, weights: tuple[float, ...]) -> Callable[[list[memoryview]], bytes]:
    """A function of one block of each source: their weighted sum, in float64, in the sources' type."""

    def average(parts: list[memoryview]) -> bytes:
        import numpy as np

        total: Any = sum(
            weight * decode(part, dtype).astype("<f8") for weight, part in zip(weights, parts, strict=True)
        )
        with np.errstate(over="ignore"):
            return encode(total.astype("<f4"), dtype)

    return average
