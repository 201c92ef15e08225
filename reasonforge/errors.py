"""The errors a user sees: one line saying where, what was found, why it is wrong and what would be right.

`reasonforge.cli` prints them without a traceback and exits with their `exit_code`.
"""

import difflib
from collections.abc import Iterable


class ReasonforgeError(Exception):
    """The work failed (exit code 1)."""

    exit_code = 1


class RequestError(ReasonforgeError):
    """The request was wrong (exit code 2): a bad recipe, a bad input file, a damaged artifact.

    Args:
        where: file, with line or key where known ("traces.jsonl:17", "recipe.yaml:9: stages.distill.engine").
        problem: what was found and why it is wrong.
        remedy: what would be right; empty where the problem already says it.
    """

    exit_code = 2

    def __init__(self, where: str, problem: str, remedy: str = ""):
        self.where, self.problem, self.remedy = where, problem, remedy
        super().__init__(f"{where}: {problem}" + (f"; {remedy}" if remedy else ""))

    def __reduce__(self) -> tuple[type["RequestError"], tuple[str, str, str]]:
        """Pickle by the three parts: an error may come out of a worker process."""
        return RequestError, (self.where, self.problem, self.remedy)


class StageError(ReasonforgeError):
    """A stage's own work failed (exit code 1); what it had saved is kept for the next attempt."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """A remedy naming the valid choice closest to `word`, or all the choices where none is close."""
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "choose one of: " + ", ".join(known) if known else "nothing can be chosen here"
