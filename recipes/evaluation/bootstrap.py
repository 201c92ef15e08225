"""Percentile bootstrap over problems: how far a mean would move had other problems of the same kind been drawn.

`recipes.evaluation.scoring` calls it for the metrics of one model and for the paired differences of two.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK_CELLS = 4_000_000


def mean_intervals(
    values: "NDArray[np.float64]", *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> "NDArray[np.float64]":
    """Means of the columns and their percentile intervals (Efron 1979; Efron and Tibshirani 1993, chapter 13).

    Problems are drawn with replacement, each with all its samples. Samples of one problem are alike, so problems are
    the units: an interval over single samples would be too narrow. All columns share the draws. For a paired
    difference give the difference of the two models' values: the same problems are then drawn for both.
    Columns without variance give an interval of no width.

    Args:
        values: shape (problems, columns), float64, one value of each metric a problem.
        resamples: how many sets of problems are drawn.
        level: the share of the means that the interval holds.
        seed: equal seeds give equal intervals.

    Returns:
        Shape (columns, 3), float64: mean, low, high.
    """
    import numpy as np

    problems = len(values)
    if problems == 0:
        raise ValueError("there is no mean over no problems")
    generator = np.random.default_rng(seed)
    share = np.full(problems, 1.0 / problems)
    means = []
    for count in _chunks(resamples, max(1, _CHUNK_CELLS // problems)):
        weights = generator.multinomial(problems, share, size=count)
        means.append(weights @ values / problems)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(np.concatenate(means), [tail, 1.0 - tail], axis=0)
    return np.stack([values.mean(axis=0), low, high], axis=1)


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]
