"""The annotation `escape`: rewrites strings that a tokenizer would read as control tokens, so that rows can stay."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from data_prep.annotation.base import Annotation, Row
from data_prep.annotation.control import THINKING, check_escapable, control_tokens, files_of, finder
from reasonforge.errors import RequestError


class EscapeAnnotation(Annotation):
    """Puts a space behind the first character of each control token in prompt and response: `<|im_end|>` becomes
    `< |im_end|>`. Adds `escaped`: how often each token was rewritten ({"<|im_end|>": 2}), an empty mapping mostly.

    It is the one annotation that changes a text, and what a student learns to write; the filter `special_tokens` drops
    such rows instead. A space is seen by a reader and is one ordinary token, where an invisible character (U+200B)
    would be learned as well and be seen by nobody. `<think>` and `</think>` stay in a response.
    """

    adds: ClassVar[tuple[str, ...]] = ("escaped",)

    type: Literal["escape"] = "escape"
    model: str | None = None
    """A model directory, whose control tokens are rewritten."""
    tokens: list[str] = Field(default_factory=list)
    """Strings that are rewritten too. Without them and without `model` it is those of Qwen and Llama 3."""

    @field_validator("tokens")
    @classmethod
    def _check(cls, tokens: list[str]) -> list[str]:
        for token in tokens:
            check_escapable(token)
        return tokens

    @property
    def external_files(self) -> tuple[Path, ...]:
        """The files of the tokenizer."""
        return files_of(self.model)

    def look(self, rows: Sequence[Row]) -> list[Row]:
        """The texts as they should be, and what was rewritten."""
        in_prompt, in_response = _finders(self.model, tuple(self.tokens))
        found = []
        for row in rows:
            counts: Counter[str] = Counter()
            prompt = _escaped(row["prompt"], in_prompt, counts)
            response = _escaped(row["response"], in_response, counts)
            found.append({"prompt": prompt, "response": response, "escaped": dict(sorted(counts.items()))})
        return found


@lru_cache(maxsize=2)
def _finders(model: str | None, tokens: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What is looked for in prompts and in responses. Raises RequestError for a model with a token of several words."""
    for token in control_tokens(Path(model)) if model is not None else ():
        try:
            check_escapable(token)
        except ValueError as error:
            raise RequestError(f"{model}: tokenizer.json", str(error), "use the filter `special_tokens`") from None
    return finder(model, tokens, ()), finder(model, tokens, THINKING)


def _escaped(text: str, control: re.Pattern[str], counts: Counter[str]) -> str:
    """A text without control tokens.

    It is looked through again while one is found, since tokens may stand inside each other; no token has a space, so
    each time some run without spaces gets shorter.
    """

    def rewrite(found: re.Match[str]) -> str:
        counts[found.group()] += 1
        return f"{found.group()[0]} {found.group()[1:]}"

    while control.search(text):
        text = control.sub(rewrite, text)
    return text
