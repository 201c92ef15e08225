"""What all graders share: the verdicts, and how a grade comes from a response and the right answer."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from data_prep.grading.extract import final_text, last_boxed
from reasonforge.config import Strict

Verdict = Literal[
    "correct", "wrong", "unparseable_gold", "unparseable_answer", "timeout",
    "unparseable_verdict",
]  # fmt: skip
ALL_VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
VERDICTS: tuple[Verdict, ...] = ALL_VERDICTS[:5]
"""The five outcomes of every grader; "unparseable_verdict", the sixth, is a judge model's alone."""


@dataclass(frozen=True)
class Grade:
    """The verdict on one response, and the answer that was found in it (None where there was none)."""

    verdict: Verdict
    extracted: str | None


class BaseGrader(Strict):
    """The base of all graders. A subclass says how two answers compare; extraction is the same for most.

    `decide` is the cheap part and never hangs; `judge` may be slow or hang on hostile answers, so
    `data_prep.grading.pool` runs it in worker processes with hard limits. Both see of a row only what `gold` says.
    """

    @property
    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """The importable modules that grading needs, for `reasonforge doctor`."""

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The verdicts that this grader may give."""
        return VERDICTS

    def gold(self, row: Mapping[str, Any]) -> str:
        """All that grading needs of a problem row, as one text: its `answer`, for most graders."""
        return str(row["answer"])

    @abstractmethod
    def decide(self, gold: str, answer: str | None) -> Verdict | None:
        """The verdict where plain text work finds it, else None; `answer` is what `extract` returned."""

    @abstractmethod
    def judge(self, gold: str, answer: str) -> Verdict:
        """The verdict on an answer that `decide` left open. No time limit is set here."""

    def judge_all(self, pairs: Sequence[tuple[str, str]]) -> Iterator[Verdict]:
        """`judge` on each pair (gold, answer), in order; a subclass may work on several at once."""
        for gold, answer in pairs:
            yield self.judge(gold, answer)

    def warm_up(self) -> None:
        """Called once in a worker before its first pair, outside all time limits: what is loaded late loads here.

        Raises RequestError where this machine cannot grade.
        """
        self.judge("1+1", "1+2")

    @property
    def limit_s(self) -> float:
        """CPU seconds of a worker's own process that one `judge` may take."""
        return 5.0

    @property
    def silence_s(self) -> float:
        """Seconds without a word from a worker after which it counts as hung, whatever its CPU limit says."""
        return 20.0 * self.limit_s + 60.0

    @property
    def batch(self) -> int:
        """Pairs that a worker gets at once: about 60 ms of work where `judge` is fast."""
        return 16

    def extract(self, response: str) -> str | None:
        r"""The last `\boxed{}` of the text after the thinking; None where there is no such box."""
        text = final_text(response)
        return None if text is None else last_boxed(text)

    def grade(self, response: str, answer: str) -> Grade:
        """Grade a response against the right answer (or what `gold` made of a row), in this process.

        Where `judge` may be slow, a subclass limits its time as well as one process can do that.
        """
        extracted = self.extract(response)
        verdict = self.decide(answer, extracted)
        return Grade(verdict or self.judge(answer, extracted or ""), extracted)
