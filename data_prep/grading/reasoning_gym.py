"""The reasoning-gym grader: the scorer that the package reasoning-gym ships for each of its datasets.

An extra: `pip install reasoning-gym`. Rows carry the name of their dataset and the entry that was made.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from data_prep.grading.base import BaseGrader, Verdict
from data_prep.grading.extract import final_text, last_boxed
from reasonforge.errors import RequestError

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class ReasoningGymGrader(BaseGrader):
    r"""Scores an answer with `reasoning_gym.get_score_answer_fn(name)`; right where the score reaches `threshold`.

    A row has the dataset's name in `dataset_column` (or in `metadata.source_dataset`, where reasoning-gym writes it)
    and the entry's `metadata`. The answer is the last `<answer>...</answer>` of the final text, which reasoning-gym's
    own prompts ask for, else the last `\boxed{}`. Source: github.com/open-thought/reasoning-gym, arXiv 2505.24760.
    """

    type: Literal["reasoning_gym"] = "reasoning_gym"

    dataset_column: str = "dataset"
    """The column of a row with the dataset's name ("basic_arithmetic")."""
    threshold: float = Field(default=1.0, gt=0, le=1)
    """The least score, of 0 to 1, that is right; many scorers give a little for a wrong answer of the right form."""

    @property
    def needs(self) -> tuple[str, ...]:
        """reasoning-gym."""
        return ("reasoning_gym",)

    def gold(self, row: Mapping[str, Any]) -> str:
        """The dataset's name and the entry, as JSON."""
        metadata = row.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        name = row.get(self.dataset_column) or metadata.get("source_dataset")
        entry = {"question": row.get("prompt"), "answer": str(row["answer"]), "metadata": metadata}
        return json.dumps({"dataset": name, "entry": entry}, ensure_ascii=False, sort_keys=True)

    def extract(self, response: str) -> str | None:
        """The last answer that the final text marks as one."""
        text = final_text(response) or ""
        tagged = _TAG.findall(text)
        return str(tagged[-1]).strip() if tagged else last_boxed(text)

    def decide(self, gold: str, answer: str | None) -> Verdict | None:
        """Only what needs no scorer."""
        if _read(gold) is None:
            return "unparseable_gold"
        return None if (answer or "").strip() else "unparseable_answer"

    def judge(self, gold: str, answer: str) -> Verdict:
        """The scorer's verdict. Raises RequestError where the package is missing."""
        found = _read(gold)
        score = _scorer(found[0]) if found else None
        if found is None or score is None:
            return "unparseable_gold"
        try:
            return "correct" if float(score(answer=answer, entry=found[1])) >= self.threshold else "wrong"
        except (KeyError, TypeError):
            # The entry lacks what this dataset's scorer reads.
            return "unparseable_gold"

    def warm_up(self) -> None:
        """Load the package, which takes seconds."""
        _package()


def _read(gold: str) -> tuple[str, dict[str, Any]] | None:
    try:
        found = json.loads(gold)
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("dataset"), str):
        return None
    return found["dataset"], found["entry"]


def _scorer(name: str) -> Any:
    """The scorer of a dataset; None where reasoning-gym has none of that name."""
    gym = _package()
    try:
        return gym.get_score_answer_fn(name)
    except (KeyError, ValueError):
        return None


def _package() -> Any:
    import importlib

    try:
        return importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise RequestError(
            "grader: reasoning_gym", f"the package cannot be imported ({error})", "pip install reasoning-gym"
        ) from None
