"""The selection `g_vendi`: rows whose gradients point in as many directions as can be; it also measures that."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from data_prep.generation.sampling import MakeProgress
from data_prep.selection.base import save_figures
from data_prep.selection.gradients import GradientSelection, collect, deterministic
from data_prep.selection.vendi import spread, vendi_score


class GVendiSelection(GradientSelection):
    """Keeps `rows` rows that score a high G-Vendi together, chosen one by one (`vendi.spread`).

    G-Vendi (arXiv 2505.20161) is the exponential of the entropy of the spectrum of the gradients'
    covariance: about how many different lessons there are. The paper measures data sets with it and does not choose
    by it, so the choice is ours; its figures are `g_vendi_before` and `g_vendi_after`.
    """

    type: Literal["g_vendi"] = "g_vendi"

    rows: int | None = Field(default=None, ge=1)
    """The budget; null keeps every row that has a gradient, and only measures."""

    def choose(self, rows: Path, scratch: Path, *, seed: int, progress: MakeProgress) -> Iterator[str | None]:
        """Gradients, in shards; then one pass over all of them for each row that is kept."""
        import numpy as np
        import torch

        found = collect(rows, self, scratch, seed=seed, progress=progress)
        places = found.places()
        kept = places
        if self.rows is not None and self.rows < len(places):
            with deterministic():
                kept = places[spread(torch.from_numpy(found.vectors[places]).to(self.place), self.rows)]
        save_figures(
            scratch,
            {
                "rows_in": len(found.reasons),
                "rows_with_gradient": len(places),
                "rows_out": len(kept),
                "g_vendi_before": vendi_score(found.vectors),
                "g_vendi_after": vendi_score(found.vectors[np.sort(kept)]),
            },
        )
        chosen = np.zeros(len(found.reasons), np.bool_)
        chosen[kept] = True
        for reason, keep in zip(found.reasons, chosen, strict=True):
            if reason is not None:
                yield f"no gradient: {reason}"
            else:
                yield None if keep else "its gradient is like those of rows that are kept"
