"""The annotation `language`: the natural language of a trace, of its prompt, and how much the trace mixes in others."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import ClassVar, Literal

from data_prep.annotation.base import Annotation, Row


class LanguageAnnotation(Annotation):
    """Adds three columns, read from prose alone: LaTeX, code, formulas and symbols are left out first.

    - `language`: of the response, an ISO 639-1 code; null where there is too little prose, or it is not clear.
    - `prompt_language`: the same of the prompt.
    - `mixed`: the share (0..1) of the response's letters in another script or language than the prompt's language,
      or than the response's own where the prompt has none; null where neither has one. A Chinese, Japanese or Korean
      character counts as three letters. Sentences of less than 40 letters are judged with the next, or by script.
    """

    adds: ClassVar[tuple[str, ...]] = ("language", "prompt_language", "mixed")

    type: Literal["language"] = "language"

    @property
    def needs(self) -> tuple[str, ...]:
        """py3langid."""
        return ("py3langid",)

    def look(self, rows: Sequence[Row]) -> list[Row]:
        """Read each row by itself."""
        from data_prep.annotation.identify import read  # its patterns take a while to compile

        return [asdict(read(row["prompt"], row["response"])) for row in rows]
