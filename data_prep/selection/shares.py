"""Fair shares of a budget by water-filling: cells are filled to one level, and what one lacks goes to the others.

The selections `balanced` and `prismatic` divide their budgets with it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def fill(
    cells: "NDArray[np.integer]", lots: "NDArray[np.int64]", weights: "NDArray[np.int64]", budget: int
) -> "NDArray[np.bool_]":
    """Which rows fit into the budget, where every cell is filled to the same level.

    A row's level is the weight of its cell up to and including it, in the order of the lots; rows are taken from the
    lowest level up, and the first that would exceed the budget ends it. So a cell that ends below the last level is
    kept whole, and each other one to that level (max-min fairness); a smaller budget takes a subset.

    Args:
        cells: the cell of each row, from 0.
        lots: what decides among the rows of a cell, the least first, and among rows of one level.
        weights: what each row takes of the budget, 0 or more.
        budget: the most that all rows taken may weigh.
    """
    import numpy as np

    order = np.lexsort((lots, cells))
    sums = np.cumsum(weights[order])
    starts = np.flatnonzero(np.diff(cells[order], prepend=-1))
    before = np.repeat(sums[starts] - weights[order[starts]], np.diff(np.append(starts, len(order))))
    levels = np.empty(len(order), np.int64)
    levels[order] = sums - before
    order = np.lexsort((lots, levels))
    kept = np.zeros(len(order), np.bool_)
    kept[order[np.cumsum(weights[order]) <= budget]] = True
    return kept
