"""Rewards for reinforcement: what the verifier says of the answer, and whether the response has the right form."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from data_prep.grading.extract import final_text, last_boxed
from data_prep.grading.pool import GradingPool
from reasonforge.config import Strict

_THOUGHT_ONCE = re.compile(r"\s*(?:<think>)?(?:(?!</?think>).)*</think>(?:(?!</?think>).)*", re.DOTALL)

RewardFunction = Callable[..., list[float]]


class RewardWeights(Strict):
    """How much each reward counts; they are summed."""

    accuracy: float = Field(1.0, ge=0)
    """1 for a verified answer, 0 for anything else."""
    format: float = Field(0.0, ge=0)
    """1 for one closed stretch of thinking and a boxed answer after it, 0 for anything else."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.accuracy and not self.format:
            raise ValueError("accuracy and format are both 0, so nothing is rewarded; raise one of them")
        return self


def well_formed(response: str) -> bool:
    """Whether a response thinks once, stops thinking, and then boxes an answer."""
    return _THOUGHT_ONCE.fullmatch(response) is not None and bool(last_boxed(final_text(response) or ""))


def reward_functions(pool: GradingPool, weights: RewardWeights) -> dict[str, tuple[Callable[..., Any], float]]:
    """The rewards with a weight above 0, by name, in the form that TRL calls: lists in, a float each out."""

    def accuracy(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
        rows = [{"response": text, "answer": gold} for text, gold in zip(_texts(completions), answer, strict=True)]
        return [float(row["verdict"] == "correct") for row in pool.grade(rows)]

    def format(completions: Sequence[Any], **_: Any) -> list[float]:
        return [float(well_formed(text)) for text in _texts(completions)]

    chosen: dict[str, tuple[RewardFunction, float]] = {
        "accuracy": (accuracy, weights.accuracy),
        "format": (format, weights.format),
    }
    return {name: pair for name, pair in chosen.items() if pair[1] > 0}


def _texts(completions: Sequence[Any]) -> list[str]:
    """Plain texts out of TRL's completions, which are lists of messages for conversational prompts."""
    return [item if isinstance(item, str) else item[0]["content"] for item in completions]
