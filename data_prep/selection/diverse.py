"""The selection `diverse`: of each problem a few traces that are as unlike each other as can be."""

from array import array
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from data_prep.generation.sampling import MakeProgress
from data_prep.overlap.hashing import Unit, run_hashes, split_units
from data_prep.overlap.minhash import BINS, sketch
from data_prep.selection.base import Row, Selection, lot
from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BATCH_ROWS = 256
"""Rows that are sketched at a time."""
MOST = 4096
"""Traces of one problem that are compared, each with each."""


class DiverseSelection(Selection):
    """Keeps of each problem `k` traces: the two that are farthest apart, then always the one farthest from all kept.

    That is within a factor of 2 of the largest least distance that any k traces have (Ravi, Rosenkrantz and Tayi 1994,
    Heuristic and Special Case Algorithms for Dispersion Problems). DED keeps of many samples those farthest apart by
    edit distance (arXiv 2508.09883), as diverse roll-outs do in reinforcement learning; OpenThoughts3 keeps all 16 that
    it samples of a question (arXiv 2506.04178), LIMO one (arXiv 2502.03387). The distance here is 1 - Jaccard of the
    sets of shingles, estimated by MinHash (standard error .04 at most): it does not grow with the length, and costs a
    million traces 128 bytes each instead of an edit distance for each pair.
    """

    type: Literal["diverse"] = "diverse"

    k: int = Field(default=4, ge=1)
    """Traces a problem at most; one alone is the trace that is most like all others. 4 is our choice: fewer than
    OpenThoughts3's 16, as only traces that differ add anything."""
    shingle: Unit = "words"
    """What a shingle is made of: words between white space, or characters for languages without spaces."""
    size: int = Field(default=5, ge=1)
    """Words or characters in a shingle; 5 words as in near_duplicates."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What is read of a row."""
        return ("problem_id", "response")

    def choose(self, rows: Path, scratch: Path, *, seed: int, progress: MakeProgress) -> Iterator[str | None]:
        """In one pass over the file, with 144 bytes a row, and one over the problems."""
        import numpy as np

        problems, lots, sketches = array("q"), array("q"), bytearray()
        source = read_jsonl(rows)
        while batch := list(islice(source, BATCH_ROWS)):
            problems.extend(lot(seed, row["problem_id"]) for row in batch)
            lots.extend(lot(seed, row["id"]) for row in batch)
            sketches += self._sketch(batch).tobytes()
        signatures = np.frombuffer(sketches, np.uint8).reshape(-1, BINS)
        problem = np.asarray(problems, np.int64)
        order = np.lexsort((np.asarray(lots, np.int64), problem))
        kept = np.zeros(len(order), np.bool_)
        bounds = np.flatnonzero(np.diff(problem[order], prepend=-1, append=-1))
        for start, stop in pairwise(bounds.tolist()):
            if stop - start > MOST:
                found = f"a problem has {stop - start} traces, and `diverse` compares {MOST} at most"
                raise RequestError(str(rows), found, "put `shortest_correct` before it, or sample fewer")
            members = order[start:stop]
            kept[members[farthest(signatures[members], self.k)]] = True
        for keep in kept:
            yield None if keep else f"not among the {self.k} most diverse of its problem"

    def _sketch(self, batch: Sequence[Row]) -> "NDArray[np.uint8]":
        units = split_units([row["response"] for row in batch], self.shingle)
        return sketch(run_hashes(units, self.size), units.offsets, self.size, BINS)


def farthest(signatures: "NDArray[np.uint8]", k: int) -> list[int]:
    """Which `k` of some texts, by their MinHash signatures (texts × BINS); among equals the first.

    Greedy farthest-point choice: see `DiverseSelection`.
    """
    import numpy as np

    count = len(signatures)
    if count <= k:
        return list(range(count))
    unlike = np.stack([(signatures != one).sum(axis=1) for one in signatures])
    if k == 1:
        return [int(unlike.sum(axis=1).argmin())]
    chosen = [int(place) for place in divmod(int(unlike.argmax()), count)]
    if not unlike.any():  # all are alike
        return list(range(k))
    least = np.minimum(unlike[chosen[0]], unlike[chosen[1]])
    while len(chosen) < k:
        least[chosen] = -1
        chosen.append(int(least.argmax()))
        least = np.minimum(least, unlike[chosen[-1]])
    return chosen
