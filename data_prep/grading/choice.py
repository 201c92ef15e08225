"""The multiple choice grader: a letter, or the text of the option that it names.

`curate` and `evaluate` run it through `data_prep.grading.pool`; rows carry their options in a column.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from data_prep.grading.base import BaseGrader, Verdict
from data_prep.grading.extract import final_text, last_boxed
from data_prep.grading.literals import normalise

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_MARKED = re.compile(r"[(\[]?\s*([A-Za-z])\s*(?:[)\].:]|$)\s*")
_SAID = re.compile(
    r"\b(?:final answer|correct answer|best answer|correct option|correct choice|answer|option|choice)"
    r"(?:\s+(?:is|would be|must be))?\s*[:=]?\s*(?:option|choice)?\s*[*_$]*(?:\\text\s*\{)?\s*"
    r"(?:\((?P<a>[A-Za-z])\)|\[(?P<b>[A-Za-z])\]|(?P<c>(?-i:[B-HJ-Z]|[AI](?!\s+(?!because|since|as|with)[a-z])))(?![\w'-]))",
    re.IGNORECASE,
)
_ALONE = re.compile(r"[*_$\s]*\(?([A-Z])\)?[.*_$\s]*")


class ChoiceGrader(BaseGrader):
    r"""Compares the option that a response chose with the right one.

    An answer is, in this order: the last `\boxed{}` of the final text (`B`, `(B)`, `B.`, `\text{B}`, `B) Paris`, or
    an option's text); the last phrase such as "The answer is B", "Answer: (B)"; a last line that is one capital
    letter. A letter and a text that name different options (`B) Rome` where B is Paris) are wrong.

    The right answer is a letter or the text of an option. Options are a list of texts, `{"A": "Paris", ...}`, or
    `{"label": [...], "text": [...]}` (the form of ARC and CommonsenseQA); without them only letters are read.
    Texts are equal when whitespace, case, LaTeX wrappers and a trailing full stop are folded, and must be so for
    one option only.
    """

    type: Literal["choice"] = "choice"

    options_column: str = "options"
    """The column of a row with its options; a row without it has letters only."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing beyond Python."""
        return ()

    def gold(self, row: Mapping[str, Any]) -> str:
        """The answer and the options of a row, as JSON; the plain answer where there are no options."""
        options = row.get(self.options_column)
        if options is None:
            return str(row["answer"])
        return json.dumps({"answer": str(row["answer"]), "options": options}, ensure_ascii=False, sort_keys=True)

    def extract(self, response: str) -> str | None:
        """The chosen option as the response wrote it; None where it chose none."""
        text = final_text(response)
        if text is None:
            return None
        if (box := last_boxed(text)) is not None:
            return box
        said = list(_SAID.finditer(text))
        if said:
            return next(letter for letter in said[-1].groups() if letter).upper()
        last = text.strip().rpartition("\n")[2]
        alone = _ALONE.fullmatch(last)
        return alone[1] if alone else None

    def decide(self, gold: str, answer: str | None) -> Verdict:
        """The verdict; it is always decided here."""
        right, options = _gold(gold)
        wanted = None if options is None else _option(right, options)
        if wanted is None:
            return "unparseable_gold"
        if not normalise(answer or ""):
            return "unparseable_answer"
        given = _option(answer or "", options or {})
        if given is None:
            # A text that is no option is an answer, but not one that can be right; without options nobody can tell.
            return "wrong" if options else "unparseable_answer"
        return "correct" if given == wanted else "wrong"

    def judge(self, gold: str, answer: str) -> Verdict:
        """The same as `decide`."""
        return self.decide(gold, answer)


def _gold(gold: str) -> tuple[str, dict[str, str] | None]:
    """The right answer, and the options by letter: empty where there are none, None where they cannot be read."""
    if not gold.startswith("{"):
        return gold, {}
    try:
        found = json.loads(gold)
    except ValueError:
        return gold, {}
    if not isinstance(found, dict) or "answer" not in found:
        return gold, {}
    return str(found["answer"]), _options(found.get("options"))


def _options(options: Any) -> dict[str, str] | None:
    """Options by letter, their texts folded; None where the value has none of the three forms."""
    if isinstance(options, dict) and set(options) == {"label", "text"}:
        labels, texts = options["label"], options["text"]
        if not isinstance(labels, list) or not isinstance(texts, list) or len(labels) != len(texts):
            return None
        if all(str(label).isdigit() for label in labels):
            labels = LETTERS[: len(labels)]
        options = dict(zip(map(str, labels), texts, strict=True))
    if isinstance(options, list) and len(options) <= len(LETTERS):
        options = dict(zip(LETTERS, options, strict=False))
    if not isinstance(options, dict) or not options:
        return None
    return {str(letter).strip().upper(): _fold(str(text)) for letter, text in options.items()}


def _option(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that an answer names; None where it names none, or two."""
    text = normalise(last_boxed(answer) or answer)
    folded = _fold(text)
    by_text = [letter for letter, option in options.items() if option == folded]
    if len(by_text) == 1:
        return by_text[0]
    mark = _MARKED.match(text)
    letter = mark[1].upper() if mark else None
    if mark is None or letter is None or (options and letter not in options):
        return None
    rest = _fold(text[mark.end() :])
    if rest and options.get(letter, _fold(options[letter]) if letter in options else rest) != rest:
        return None
    return letter


def _fold(text: str) -> str:
    """A text with whitespace, case, LaTeX wrappers and its own letter in front ("B. Paris") folded."""
    folded = " ".join(normalise(text).split()).casefold()
    return re.sub(r"^[(\[]?[a-z][)\].:]\s+(?=\S)", "", folded).rstrip(". ")
