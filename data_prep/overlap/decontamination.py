"""Decontamination: finds rows that share a run of words with an evaluation problem. `curation` calls it."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from data_prep.overlap.hashing import Units, constants, run_hashes, split_units
from data_prep.overlap.native import compiled
from reasonforge.config import Strict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.overlap.hashing import Hashes, Places

ENDING = 4
"""Words at the end of a short problem by which it is looked for; the beginnings of problems are more alike."""
FILTER_BITS = 64
"""Bits in the filter for each run: 5,000 problems of 60 words take 2 MiB, which a processor's cache holds."""


class Benchmark(Strict):
    """A file of evaluation problems that no row may share words with."""

    path: str
    """A file (.jsonl, .jsonl.gz, .jsonl.zst, .parquet), a saved split, or a Hub name (see `data_prep.sources.rows`)."""
    column: str = "prompt"
    """Where it has the problem's text."""
    name: str | None = None
    """What it is called in the hits; null takes the file's name."""


class Decontamination(Strict):
    """How evaluation problems are found in prompts.

    Words are what stands between spaces, case-folded. Punctuation stays: stripping it gave false hits on
    mathematics, where it is most of the content.
    """

    n: int = Field(default=13, ge=2)
    """Words in a run that must not be shared. 13 as in GPT-3 (arXiv 2005.14165, appendix C) and most work since.
    An evaluation problem of fewer words must be shared as a whole."""
    inside: int = Field(default=8, ge=1)
    """Words from which such a short problem is found anywhere inside a text; 8 is GPT-3's least n. One of fewer words
    is found where it is the whole text, a paragraph or a line: in the midst of other words it may be a usual phrase
    ("which of the following is true?"), or the beginning of another problem ("Start: 9 a+3" of "Start: 9 a+3 b+6").
    1 finds all of them anywhere."""
    columns: list[Literal["prompt", "response"]] = Field(default=["prompt"], min_length=1)
    """Where they are looked for; `response` finds a problem that is recited in the reasoning too."""
    against: list[Benchmark] = Field(default_factory=list)
    """Further files of evaluation problems, besides those of the stage's own problems."""


class _Run(NamedTuple):
    """A run of words of a problem that must not be shared."""

    problem: int
    start: int
    length: int


class EvaluationIndex:
    """The runs of n words of all evaluation problems, and the short problems whole; about 200 bytes a run.

    `problems` are rows with `id` and `prompt`, of one benchmark or of several one after the other; a row that has a
    `benchmark` is named by it in its hits.
    """

    def __init__(self, problems: Iterable[dict[str, Any]], config: Decontamination):
        import numpy as np

        self._config = config
        self._names: list[dict[str, Any]] = []
        self._problems: list[list[str]] = []
        for problem in problems:
            self._names.append({"problem_id": problem["id"]})
            if problem.get("benchmark") is not None:
                self._names[-1]["benchmark"] = problem["benchmark"]
            self._problems.append(problem["prompt"].casefold().split())
        units = split_units([" ".join(words) for words in self._problems])
        lengths = np.diff(units.offsets)
        self._empty = np.flatnonzero(lengths == 0).tolist()
        self._known = [_Known(units, np.flatnonzero(lengths >= config.n), config.n, whole=False)]
        shorts = np.where(lengths < config.n, np.minimum(lengths, ENDING), 0)
        self._known += [
            _Known(units, np.flatnonzero(shorts == ending), int(ending), whole=True)
            for ending in np.unique(shorts[shorts > 0])
        ]

    def hits(self, prompt: str) -> list[dict[str, Any]]:
        """Every evaluation problem that a text shares words with.

        A hit has the `problem_id`, its `benchmark` where that is known, the `words` of the text that are shared (first
        and one past the last, from 0; neighbouring runs are joined) and their `text`, case-folded. In order of `words`,
        then as in the evaluation file.
        """
        return self.find([prompt])[0]

    def find(self, texts: Sequence[str]) -> list[list[dict[str, Any]]]:
        """The `hits` of each text. Hashes find the places, and the words there are compared; a thousand is fast."""
        folded = [text.casefold() for text in texts]
        units = split_units(folded)
        places: dict[int, list[tuple[int, _Run]]] = {}
        for known in self._known:
            for row, start, run in known.find(units):
                places.setdefault(row, []).append((start, run))
        found = []
        for row, (text, (begin, end)) in enumerate(zip(folded, pairwise(units.offsets.tolist()), strict=True)):
            if begin == end:
                found.append([{**self._names[problem], "words": [0, 0], "text": ""} for problem in self._empty])
            else:
                found.append(self._check(text, places[row]) if row in places else [])
        return found

    def _check(self, text: str, places: list[tuple[int, _Run]]) -> list[dict[str, Any]]:
        """The hits among places whose hashes are equal, as far as the words are."""
        words = text.split()
        blocks: set[tuple[int, int]] | None = None
        spans: dict[int, list[list[int]]] = {}
        for start, run in sorted(places, key=lambda place: (place[0], place[1].problem)):
            end = start + run.length
            if words[start:end] != self._problems[run.problem][run.start : run.start + run.length]:
                continue
            if run.length < min(self._config.inside, self._config.n):
                blocks = _blocks(text) if blocks is None else blocks
                if (start, end) not in blocks:
                    continue
            joined = spans.setdefault(run.problem, [])
            if joined and start <= joined[-1][1]:
                joined[-1][1] = end
            else:
                joined.append([start, end])
        hits = [
            {**self._names[problem], "words": span, "text": " ".join(words[span[0] : span[1]])}
            for problem in sorted(spans)
            for span in spans[problem]
        ]
        return sorted(hits, key=lambda hit: hit["words"])


class _Known:
    """The runs of one length, or of `whole` problems the endings, by hash, and a filter that lets few others pass."""

    def __init__(self, units: Units, problems: "NDArray[np.int64]", length: int, whole: bool):
        import numpy as np

        runs = run_hashes(units, length)
        self._length, self._whole = length, whole
        ends = units.offsets[problems + 1] - length + 1
        begins = ends - 1 if whole else units.offsets[problems]
        places = np.concatenate([np.arange(begin, end) for begin, end in zip(begins, ends, strict=True)] or [begins])
        owners = np.repeat(problems, ends - begins)
        order = np.argsort(runs[places], kind="stable")
        self._hashes: Hashes = runs[places][order]
        self._owners, self._starts = owners[order], (places - units.offsets[owners])[order]
        self._shift = np.uint64(64 - (FILTER_BITS * len(order) + 8).bit_length())
        self._filter = np.zeros(1 << (64 - int(self._shift)) - 3, np.uint8)
        slots = (self._hashes * constants()[2]) >> self._shift
        np.bitwise_or.at(self._filter, slots >> np.uint64(3), np.uint8(1) << (slots & np.uint64(7)).astype(np.uint8))

    def find(self, units: Units) -> Iterator[tuple[int, int, _Run]]:
        """Row, word and known run, where the hashes are equal; in order of rows and words."""
        import numpy as np

        runs = run_hashes(units, self._length)
        at = self._pass(units, runs)
        first = np.searchsorted(self._hashes, runs[at])
        there = self._hashes[np.minimum(first, len(self._hashes) - 1)] == runs[at] if len(self._hashes) else first > 0
        at, first = at[there], first[there]
        last = np.searchsorted(self._hashes, runs[at], side="right")
        rows = np.searchsorted(units.offsets, at, side="right") - 1
        for place, row, begin, end in zip(at.tolist(), rows.tolist(), first.tolist(), last.tolist(), strict=True):
            start = place - int(units.offsets[row])
            for known in range(begin, end):
                owner, skipped = int(self._owners[known]), int(self._starts[known])
                if not self._whole:
                    yield row, start, _Run(owner, skipped, self._length)
                elif start >= skipped:
                    yield row, start - skipped, _Run(owner, 0, skipped + self._length)

    def _pass(self, units: Units, runs: "Hashes") -> "Places":
        """Where a run starts that the filter lets pass."""
        import numpy as np

        if passing := compiled(_filter):
            at: Places = np.empty(len(runs), np.int64)
            return at[: passing(runs, units.offsets, self._length, self._shift, constants(), self._filter, at)]
        mix, three, seven = constants()[2], np.uint64(3), np.uint64(7)
        ends = np.repeat(units.offsets[1:], np.diff(units.offsets))
        slots = (runs * mix) >> self._shift
        known = (self._filter[slots >> three] >> (slots & seven).astype(np.uint8)) & 1
        return np.flatnonzero(known.astype(bool) & (np.arange(len(runs)) + self._length <= ends))


def _filter(runs, offsets, length, shift, constants, known, found):  # type: ignore[no-untyped-def]  # a kernel
    mix, three, seven, count = constants[2], np.uint64(3), np.uint64(7), 0
    for row in range(len(offsets) - 1):
        for at in range(offsets[row], offsets[row + 1] - length + 1):
            slot = (runs[at] * mix) >> shift
            if (known[slot >> three] >> (slot & seven)) & 1:
                found[count] = at
                count += 1
    return count


def _blocks(text: str) -> set[tuple[int, int]]:
    """First word and one past the last of the whole text, of each paragraph (between empty lines) and each line."""
    ends = list(accumulate((len(line.split()) for line in text.splitlines()), initial=0))
    lines = set(pairwise(ends))
    gaps = [0, *(end for before, end in pairwise(ends) if before == end), ends[-1]]
    return lines | set(pairwise(gaps)) | {(0, ends[-1])}
