"""Spherical k-means: vectors of length 1 in groups of like direction. `data_prep.selection.prismatic` calls it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ROWS, CENTRES = 65_536, 1024
"""How many similarities are held at once: 256 MiB."""


def cluster(vectors: "Tensor", k: int, iterations: int) -> "Tensor":
    """The cluster of each vector, from 0: Lloyd's iterations by cosine, the centres scaled to length 1 each time.

    The first centres are the first vector and then always the one farthest from all centres (Gonzalez 1985, Clustering
    to Minimize the Maximum Intercluster Distance): they cover the space evenly, so that the size of a cluster tells how
    dense its place is, and an outlier has a centre of its own. A centre that loses all its rows stays where it is.

    Args:
        vectors: n × d, each of length 1.
        k: clusters at most; 1 to n.
    """
    import torch

    centres = vectors[_spread_out(vectors, k)].clone()
    labels = _nearest(vectors, centres)
    for _ in range(iterations):
        sums = torch.zeros_like(centres).index_add_(0, labels, vectors)
        lengths = sums.norm(dim=1, keepdim=True)
        centres = torch.where(lengths > 0, sums / lengths.clamp_min(1e-30), centres)
        moved = _nearest(vectors, centres)
        if torch.equal(moved, labels):
            break
        labels = moved
    return labels


def _spread_out(vectors: "Tensor", k: int) -> list[int]:
    import torch

    chosen = [0]
    nearest = vectors @ vectors[0]
    while len(chosen) < k:
        nearest[chosen[-1]] = 2.0  # nearer than anything: not again
        chosen.append(int(nearest.argmin()))
        torch.maximum(nearest, vectors @ vectors[chosen[-1]], out=nearest)
    return chosen


def _nearest(vectors: "Tensor", centres: "Tensor") -> "Tensor":
    import torch

    found = []
    for part in vectors.split(ROWS):
        best = [(part @ some.T).max(dim=1) for some in centres.split(CENTRES)]
        values = torch.stack([one.values for one in best])
        indices = torch.stack([one.indices + number * CENTRES for number, one in enumerate(best)])
        found.append(indices.gather(0, values.argmax(dim=0)[None])[0])
    return torch.cat(found)
