"""Random projection by signs: long vectors to short ones that keep their inner products, about.

`data_prep.selection.gradients` projects the gradients of a whole model with it. A sign is a function of its place
alone, so the matrix (parameters × dimensions) is made again block by block and never held.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BLOCK = 8192
"""Parameters whose signs are held at once: 32 MiB at 1,024 dimensions."""
WORD = 64
"""Signs that one mixed number gives."""

_STEP, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of splitmix64 (Steele, Lea and Flood 2014, Fast Splittable Pseudorandom Number Generators)."""


def signs(start: int, count: int, dimensions: int, seed: int, device: str = "cpu") -> "torch.Tensor":
    """Rows `start` to `start + count` of the sign matrix: float32, count × dimensions, each entry -1 or 1.

    Bit b of output number n of splitmix64, seeded by `seed`, is the sign at (row, column) where
    n × 64 + b = row × dimensions + column; the same on every device. `dimensions` is a multiple of 64.
    """
    import torch

    words = dimensions // WORD
    numbers = torch.arange(start * words + 1, (start + count) * words + 1, dtype=torch.int64, device=device)
    values = numbers * _signed(_STEP) + _signed(seed * _MIX_1 + _MIX_2)
    values = (values ^ _shifted(values, 30)) * _signed(_MIX_1)
    values = (values ^ _shifted(values, 27)) * _signed(_MIX_2)
    values = values ^ _shifted(values, 31)
    found = torch.nn.functional.embedding(values.view(torch.uint8).to(torch.int32), _table(device))
    return found.view(count, dimensions)


def project(pieces: Iterable["torch.Tensor"], dimensions: int, seed: int) -> "torch.Tensor":
    """Project some vectors at once: `pieces` are their parts, one behind the other, each vectors × its own length.

    Returns float32, vectors × dimensions: the products with the sign matrix, over sqrt(dimensions), so that an inner
    product of two projections is right on average, with a variance of at most 2 |a|² |b|² / dimensions (Achlioptas
    2003, Database-friendly random projections).
    """
    import torch

    total: torch.Tensor | None = None
    at = 0
    for piece in pieces:
        for start in range(0, piece.shape[1], BLOCK):
            part = piece[:, start : start + BLOCK].float()
            added = part @ signs(at + start, part.shape[1], dimensions, seed, str(part.device))
            total = added if total is None else total + added
        at += piece.shape[1]
    if total is None:
        raise ValueError("nothing to project")
    return total / torch.tensor(float(dimensions)).sqrt().item()


def _shifted(values: "torch.Tensor", by: int) -> "torch.Tensor":
    """A shift to the right that brings zeros in: int64 is the widest that torch computes with, and it has a sign."""
    return (values >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    """The number modulo 2**64 as int64 has it."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


@lru_cache(maxsize=2)
def _table(device: str) -> "torch.Tensor":
    """The eight signs of each byte, the lowest bit first: float32, 256 × 8."""
    import torch

    bits = (torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)) & 1
    return bits.float() * 2 - 1
