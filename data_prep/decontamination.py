"""Decontamination: finds rows whose prompt shares a run of words with an evaluation problem. `curation` calls it."""

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import Field

from reasonforge.config import Strict


class Decontamination(Strict):
    """How evaluation problems are found in prompts.

    Words are what stands between spaces, case-folded. Punctuation stays: stripping it gave false hits on
    mathematics, where it is most of the content.
    """

    n: int = Field(default=13, ge=2)
    """Words in a run that must not be shared. 13 as in GPT-3 (arXiv 2005.14165, appendix C) and most work since.
    An evaluation problem of fewer words is found where the whole prompts are equal."""


class EvaluationIndex:
    """The runs of n words of all evaluation problems (rows with `id` and `prompt`); about 200 bytes a run."""

    def __init__(self, problems: Iterable[dict[str, Any]], config: Decontamination):
        self._n = config.n
        self._runs: dict[str, list[str]] = {}
        for problem in problems:
            words = _words(problem["prompt"])
            for run in dict.fromkeys(_runs(words, self._n) if len(words) >= self._n else [" ".join(words)]):
                self._runs.setdefault(run, []).append(problem["id"])

    def hits(self, prompt: str) -> list[dict[str, Any]]:
        """Every evaluation problem that a prompt shares words with.

        A hit has the `problem_id`, the `words` of the prompt that are shared (first and one past the last, from
        0; neighbouring runs are joined) and their `text`, case-folded. In order of `words`, then as in the
        evaluation file.
        """
        words = _words(prompt)
        whole = len(words) < self._n
        found: dict[str, list[list[int]]] = {}
        for start, run in enumerate([" ".join(words)] if whole else _runs(words, self._n)):
            for problem in self._runs.get(run, ()):
                spans = found.setdefault(problem, [])
                end = len(words) if whole else start + self._n
                if spans and start <= spans[-1][1]:
                    spans[-1][1] = end
                else:
                    spans.append([start, end])
        hits = [
            {"problem_id": problem, "words": span, "text": " ".join(words[span[0] : span[1]])}
            for problem, spans in found.items()
            for span in spans
        ]
        return sorted(hits, key=lambda hit: hit["words"])


def _words(prompt: str) -> list[str]:
    return prompt.casefold().split()


def _runs(words: list[str], n: int) -> Iterator[str]:
    return (" ".join(words[start : start + n]) for start in range(len(words) - n + 1))
