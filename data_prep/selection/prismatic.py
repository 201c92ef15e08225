"""The selection `prismatic`: rows of sparse clusters in the space of gradients."""

from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from data_prep.generation.sampling import MakeProgress
from data_prep.selection.base import save_figures
from data_prep.selection.clusters import cluster
from data_prep.selection.gradients import Gradients, GradientSelection, collect, deterministic
from data_prep.selection.shares import fill
from data_prep.selection.vendi import vendi_score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class PrismaticSelection(GradientSelection):
    """Clusters the rows by their gradients, and keeps those of sparse clusters.

    Prismatic Synthesis (arXiv 2505.20161) adds to a pool, round by round, those new rows that fall into its sparse
    clusters, by spherical k-means of as many clusters as a tenth of the pool, 20 iterations, of which the smaller half
    is sparse (settings of the authors' published code). Here pool and new rows are the same, as nothing is generated:
    without `rows` the rule is applied once, as it stands, and dense clusters are dropped whole; with `rows` every
    cluster gets a fair share, sparse ones all they have, which is where the paper's rounds lead, as none adds to a
    cluster that is larger than most others. The authors' code starts k-means from the first rows of the pool; here the
    first centres cover the space evenly (`clusters.cluster`), whatever the order of the rows.
    """

    type: Literal["prismatic"] = "prismatic"

    rows: int | None = Field(default=None, ge=1)
    """The budget, shared fairly by all clusters; null keeps the rows of the sparse clusters and no other."""
    sparse: float = Field(default=0.5, gt=0, le=1)
    """Share of the clusters that are sparse: those of the fewest rows. Without a budget only."""
    clusters: float = Field(default=0.1, gt=0, le=1)
    """Clusters, as a share of the rows."""
    iterations: int = Field(default=20, ge=1)
    """Of k-means, at most."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rows is not None and "sparse" in self.model_fields_set:
            raise ValueError("`rows` shares the budget among all clusters, so `sparse` has no say; give one of them")
        return self

    def choose(self, rows: Path, scratch: Path, *, seed: int, progress: MakeProgress) -> Iterator[str | None]:
        """Gradients, in shards; then k-means, whose cost is rows × clusters × dimensions × iterations."""
        import numpy as np

        found = collect(rows, self, scratch, seed=seed, progress=progress)
        places = found.places()
        labels = self._labels(found, places)
        kept = np.zeros(len(found.reasons), np.bool_)
        if self.rows is None:
            kept[places[_in_sparse(labels, self.sparse)]] = True
            dropped = "in a dense cluster of gradients"
        else:
            ones = np.ones(len(places), np.int64)
            kept[places[fill(labels, np.arange(len(places)), ones, self.rows)]] = True
            dropped = "over its share of a cluster of gradients"
        save_figures(
            scratch,
            {
                "rows_in": len(found.reasons),
                "rows_with_gradient": len(places),
                "rows_out": int(kept.sum()),
                "clusters": len(np.unique(labels)),
                "g_vendi_before": vendi_score(found.vectors),
                "g_vendi_after": vendi_score(found.vectors[kept]),
            },
        )
        for reason, keep in zip(found.reasons, kept, strict=True):
            yield (None if keep else dropped) if reason is None else f"no gradient: {reason}"

    def _labels(self, found: Gradients, places: "NDArray[np.int64]") -> "NDArray[np.int64]":
        """The cluster of each row that has a gradient, in the order of their lots."""
        import numpy as np
        import torch

        if not len(places):
            return np.zeros(0, np.int64)
        vectors = torch.from_numpy(found.vectors[places]).to(self.place)
        with deterministic():
            labels = cluster(vectors, max(1, int(len(places) * self.clusters)), self.iterations)
        return np.asarray(labels.cpu().numpy(), np.int64)


def _in_sparse(labels: "NDArray[np.int64]", share: float) -> "NDArray[np.bool_]":
    """Which rows are in the smaller clusters; of clusters of one size, those that began first are the smaller ones."""
    import numpy as np

    names, sizes = np.unique(labels, return_counts=True)
    sparse = names[np.lexsort((names, sizes))][: ceil(len(names) * share)]
    return np.isin(labels, sparse)
