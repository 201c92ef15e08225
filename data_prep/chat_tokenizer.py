"""One prompt and its response as token ids with a completion mask, through the model's own chat template.

`data_prep.tokenization` feeds it. The whole text is encoded once and cut by offsets: encoding the prompt alone gives
other tokens where the response starts with what the tokenizer merges with the prompt's end.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_prep.chat_template import ChatTemplate
from data_prep.encoder import TextEncoder
from data_prep.grading.extract import THINK_CLOSE, THINK_OPEN
from reasonforge.errors import RequestError
from reasonforge.files import sha256_file, sha256_text

Row = dict[str, Any]


@dataclass(frozen=True)
class Tokenized:
    """A row that can be trained on: its ids, and how many of them are the prompt's."""

    input_ids: list[int]
    prompt_tokens: int
    ends_with_eos: bool


class ChatTokenizer:
    """The tokenizer and chat template of a Hugging Face model directory.

    Args:
        model: a directory with tokenizer.json, tokenizer_config.json and a chat template (in chat_template.jinja
            or in tokenizer_config.json).
        max_tokens: rows that are longer are dropped.

    Raises RequestError where a file is missing or the template cannot be trained on: it must render a conversation
    as the generation prompt followed by the response, thinking included.
    """

    def __init__(self, model: Path, max_tokens: int):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if not (model / name).is_file():
                raise RequestError(str(model / name), "missing, so there is no tokenizer", "save the tokenizer there")
        self._model, self._max_tokens = model, max_tokens
        self._encoder = _load(model)
        self._template = ChatTemplate(model, self._encoder.config)
        self._eos_token = self._encoder.name("eos_token")
        self._eos = None if self._eos_token is None else self._encoder.named_token("eos_token")
        added = {token["content"]: token["special"] for token in self._encoder.added_tokens}
        named = {self._encoder.name(key) for key in self._encoder.config if key.endswith("_token")} - {None}
        control = {text for text in added if added[text] or text in named or re.fullmatch(r"[<\[].+[>\]]", text)}
        self._control_in_prompt = _any_of(control)
        self._control_in_response = _any_of(control - {THINK_OPEN, THINK_CLOSE})
        self._texts: dict[int, str] = {}
        self._tried = False
        self._check_template()

    def identity(self) -> dict[str, Any]:
        """What tokens.json says of the tokenizer: hashes of its file and template, and the end-of-sequence token."""
        template = self._template.source
        return {
            "tokenizer_sha256": sha256_file(self._model / "tokenizer.json"),
            "chat_template_sha256": sha256_text(template if isinstance(template, str) else repr(template)),
            "eos_token": self._eos_token,
            "eos_token_id": self._eos,
        }

    def encode(self, rows: Sequence[Row]) -> list[Tokenized | str]:
        """Each row (with `prompt` and `response`) as tokens, or the reason why it is dropped."""
        results: list[Tokenized | str] = [self._forbidden(row) or "" for row in rows]
        rendered = {index: self._render(row) for index, row in enumerate(rows) if not results[index]}
        for index, (prompt, full) in rendered.items():
            if not _keeps(prompt, full, rows[index]["response"]):
                results[index] = "response_changed_by_template"
        todo = [index for index in rendered if not results[index]]
        if not self._tried:
            self._encoder.try_on([rendered[index][1] for index in todo])
            self._tried = True
        fulls = self._encoder.encode_settled([rendered[index][1] for index in todo])
        prompts = self._encoder.encode([rendered[index][0] for index in todo])
        unsure = []
        for index, full_ids, prompt_ids in zip(todo, fulls, prompts, strict=True):
            found = None if full_ids is None else self._cut_by_prefix(full_ids.tolist(), prompt_ids.tolist())
            if found is None:
                unsure.append((index, prompt_ids.tolist()))
            else:
                results[index] = found
        encodings = self._encoder.encode_with_offsets([rendered[index][1] for index, _ in unsure])
        for (index, prompt_ids), tokens in zip(unsure, encodings, strict=True):
            prompt, full = rendered[index]
            results[index] = self._cut(tokens, prompt_ids, len(prompt), full)
        return results

    def _forbidden(self, row: Row) -> str | None:
        if self._control_in_prompt.search(row["prompt"]) or self._control_in_response.search(row["response"]):
            return "special_token_in_text"
        return None

    def _render(self, row: Row) -> tuple[str, str]:
        """The generation prompt and the whole conversation, as text."""
        user = {"role": "user", "content": row["prompt"]}
        assistant = {"role": "assistant", "content": row["response"]}
        return (
            self._template.render([user], add_generation_prompt=True),
            self._template.render([user, assistant]),
        )

    def _cut_by_prefix(self, ids: list[int], prompt_ids: list[int]) -> Tokenized | str | None:
        """What `_cut` finds for a settled text, without offsets; None where they are needed.

        Where the tokens are the bytes of the text as it is, and the whole begins with the prompt's tokens, the
        completion begins with the next one.
        """
        first = len(prompt_ids)
        if not self._encoder.plain or ids[:first] != prompt_ids:
            return None
        end = len(ids)
        while end > first and ids[end - 1] != self._eos:
            text = self._text_of(ids[end - 1])
            if not text.isascii():
                return None
            if text.strip():
                break
            end -= 1
        return self._finish(ids, first, end)

    def _cut(self, tokens: Any, prompt_ids: list[int], boundary: int, full: str) -> Tokenized | str:
        """Find where the completion begins and ends among the tokens of the whole text."""
        ids, offsets = tokens.ids, tokens.offsets
        first = bisect_left(offsets, boundary, key=lambda span: span[0])
        if first and offsets[first - 1][1] > boundary:
            return "token_straddles_boundary"
        if ids[:first] != prompt_ids:
            return "prompt_tokenized_differently"
        end = len(ids)
        while end > first and ids[end - 1] != self._eos and not full[offsets[end - 1][0] :].strip():
            end -= 1
        return self._finish(ids, first, end)

    def _finish(self, ids: list[int], first: int, end: int) -> Tokenized | str:
        """What stands after the end of sequence is left out."""
        ends_with_eos = end > first and ids[end - 1] == self._eos
        ids = ids[:end] if ends_with_eos else ids
        if len(ids) == first:
            return "empty_completion"
        if len(ids) > self._max_tokens:
            return "over_max_tokens"
        return Tokenized(ids, first, ends_with_eos)

    def _text_of(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._encoder.text_of(token)
        return self._texts[token]

    def _check_template(self) -> None:
        """Try the template on one conversation before it is trusted with all."""
        from jinja2 import TemplateError

        response = f"{THINK_OPEN}\n1 and 1 make 2.\n{THINK_CLOSE}\nThe answer is \\boxed{{2}}."
        where = f"{self._model}: chat template"
        try:
            prompt, full = self._render({"prompt": "What is 1+1?", "response": response})
        except TemplateError as error:
            raise RequestError(where, f"it fails on a prompt and a response: {' '.join(str(error).split())}") from None
        if not full.startswith(prompt):
            raise RequestError(
                where,
                f"a conversation does not begin with its generation prompt, which ends in {prompt[-30:]!r}",
                "use a template whose generation prompt opens the assistant's turn and writes nothing into it",
            )
        if not _keeps(prompt, full, response):
            raise RequestError(
                where,
                "it leaves out the thinking of the response, so that could not be learned",
                "use a template that renders the assistant's content as it is",
            )


def _keeps(prompt: str, full: str, response: str) -> bool:
    """Whether the whole text is the prompt, then the response; templates may trim and add spaces.

    The response's `<think>` may be the one with which the generation prompt ends.
    """
    start = len(prompt)
    if prompt.rstrip().endswith(THINK_OPEN):
        start = prompt.rindex(THINK_OPEN)
    if not full.startswith(prompt):
        return False
    return full.find(response, start) >= 0 or "".join(response.split()) in "".join(full[start:].split())


def _any_of(texts: set[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts))) or "(?!)")


@lru_cache(maxsize=2)
def _load(model: Path) -> TextEncoder:
    return TextEncoder(model)
