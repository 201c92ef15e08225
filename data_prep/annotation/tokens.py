"""The annotation `tokens`: how long prompt and response are in tokens of a given model, usually the student."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

from data_prep.annotation.base import Annotation, Row
from data_prep.annotation.control import files_of
from data_prep.tokenization.encoder import TextEncoder


class TokensAnnotation(Annotation):
    """Adds `prompt_length` and `response_length`: tokens (int) of the texts alone, without the chat template's.

    They are counted by the student's tokenizer; `prompt_tokens` and `completion_tokens` of a trace are by its
    teacher's, where the engine gave them.
    """

    adds: ClassVar[tuple[str, ...]] = ("prompt_length", "response_length")

    type: Literal["tokens"] = "tokens"
    model: str
    """A model directory with tokenizer.json."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The tokenizer."""
        return ("tokenizers", "numpy")

    @property
    def external_files(self) -> tuple[Path, ...]:
        """The files of the tokenizer that are there."""
        return files_of(self.model)

    def look(self, rows: Sequence[Row]) -> list[Row]:
        """Encode all the texts at once."""
        encoder = _encoder(Path(self.model))
        prompts = list(dict.fromkeys(row["prompt"] for row in rows))  # traces of a problem share theirs
        counts = [len(ids) for ids in encoder.encode([*prompts, *(row["response"] for row in rows)])]
        of_prompt = dict(zip(prompts, counts[: len(prompts)], strict=True))
        return [
            {"prompt_length": of_prompt[row["prompt"]], "response_length": count}
            for row, count in zip(rows, counts[len(prompts) :], strict=True)
        ]


@lru_cache(maxsize=2)
def _encoder(model: Path) -> TextEncoder:
    return TextEncoder(model)
