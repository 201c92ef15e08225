"""The Vendi score: how many different things there are in a set, by the entropy of its similarities' spectrum."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

CHUNK_ROWS = 8192


def vendi_score(vectors: "NDArray[np.float32]") -> float:
    """exp of the Shannon entropy of the eigenvalues of X Xᵀ / n, where X has the vectors as its rows, of length 1 each.

    Friedman and Dieng 2023 (The Vendi Score, arXiv 2210.02410), with inner products as similarities; of gradients it
    is G-Vendi (Jung et al. 2025, arXiv 2505.20161). n orthogonal vectors score n, n equal ones 1, and a
    set in which every vector stands twice as much as the set. The eigenvalues are those of Xᵀ X / n too, so it costs
    n × d² and d³ at most.

    Args:
        vectors: n × d, float32; rows are scaled to length 1, zero rows are left out. It may be a memory map.
    """
    import numpy as np

    width = vectors.shape[1]
    covariance = np.zeros((width, width))
    for start in range(0, len(vectors), CHUNK_ROWS):
        part = np.asarray(vectors[start : start + CHUNK_ROWS], np.float64)
        part = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-300)
        covariance += part.T @ part
    values = np.linalg.eigvalsh(covariance)
    values = values[values > values.max(initial=0.0) * 1e-15]
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def spread(vectors: "Tensor", count: int) -> list[int]:
    """Choose `count` of some vectors (n × d, each of length 1) one by one, so that they score high together.

    The greedy step that maximises the Vendi score itself would need a spectrum for every candidate. This one maximises
    the score of order 2, n² over the sum of all (x·y)² (Pasarkar and Dieng 2024, Cousins of the Vendi Score, arXiv
    2310.12952): as Rényi's entropy falls with its order, that is a lower bound of the score of order 1. A step costs
    n × d: the candidate is taken whose squared products with all taken ones have the smallest sum, of equal ones the
    first.
    """
    import torch

    cost = torch.zeros(len(vectors), device=vectors.device)
    chosen = []
    for _ in range(min(count, len(vectors))):
        place = int(cost.argmin())
        chosen.append(place)
        cost += (vectors @ vectors[place]).square_()
        cost[place] = torch.inf
    return chosen
