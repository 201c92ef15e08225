"""One prompt and its response as token ids with a completion mask, through the model's own chat template.

`dataset` feeds it. The whole text is encoded once and cut by offsets: encoding the prompt alone gives
other tokens where the response starts with what the tokenizer merges with the prompt's end. Most rows need neither
offsets nor Jinja nor a second encoding (`data_prep.tokenization.layout`), and are the same without.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from data_prep.thinking import THINK_CLOSE, THINK_OPEN
from data_prep.tokenization.encoder import TextEncoder
from data_prep.tokenization.layout import find_layout
from data_prep.tokenization.shape import Shape, find_shape, keeps
from data_prep.tokenization.template import ChatTemplate
from reasonforge.errors import RequestError
from reasonforge.files import sha256_file, sha256_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    _Kept: TypeAlias = tuple[list[int] | NDArray[np.uint32], int, bool]
    """What `Tokenized` has."""

Row = dict[str, Any]

_TRIED_ROWS = 64


@dataclass(frozen=True)
class Tokenized:
    """A row that can be trained on: its ids, and how many of them are the prompt's."""

    input_ids: list[int]
    prompt_tokens: int
    ends_with_eos: bool


@dataclass(frozen=True)
class Batch:
    """Some rows' tokens, one after the other; of the rows that are dropped, nothing but the reasons.

    Args:
        ids: int32 of shape [tokens].
        lengths: tokens of each kept row, int64 of shape [kept].
        prompts: how many of them are the prompt's, int64 of shape [kept].
        ends_with_eos: bool of shape [kept].
        dropped: by the row's number in the batch, why it is dropped.
    """

    ids: "NDArray[np.int32]"
    lengths: "NDArray[np.int64]"
    prompts: "NDArray[np.int64]"
    ends_with_eos: "NDArray[np.bool_]"
    dropped: dict[int, str]

    def __iter__(self) -> Iterator[Tokenized]:
        """The kept rows."""
        import numpy as np

        pieces = np.split(self.ids, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []
        for piece, first, eos in zip(pieces, self.prompts.tolist(), self.ends_with_eos.tolist(), strict=True):
            yield Tokenized(piece.tolist(), first, eos)


class ChatTokenizer:
    """The tokenizer and chat template of a Hugging Face model directory.

    Args:
        model: a directory with tokenizer.json, tokenizer_config.json and a chat template (in chat_template.jinja
            or in tokenizer_config.json).
        max_tokens: rows that are longer are dropped.
        sample: the first rows that will come (with `prompt` and `response`), to try the encoder on; without it, the
            first ones that do come are taken.

    Raises RequestError where a file is missing or the template cannot be trained on: it must render a conversation
    as the generation prompt followed by the response, thinking included.
    """

    def __init__(self, model: Path, max_tokens: int, sample: Sequence[Row] = ()):
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
        self._shape: Shape | None = None
        self._check_template()
        self._shape = find_shape(self._template)
        if sample:
            self._try([row["prompt"] for row in sample], [row["response"] for row in sample])
        thinking = control & {THINK_OPEN, THINK_CLOSE}
        self._layout = find_layout(self._encoder, self._shape, control, thinking, self._kept)

    def identity(self) -> dict[str, Any]:
        """What tokens.json says of the tokenizer: hashes of its file and template, and the end-of-sequence token."""
        template = self._template.source
        return {
            "tokenizer_sha256": sha256_file(self._model / "tokenizer.json"),
            "chat_template_sha256": sha256_text(template if isinstance(template, str) else repr(template)),
            "eos_token": self._eos_token,
            "eos_token_id": self._eos,
        }

    def encode_batch(self, prompts: Sequence[str], responses: Sequence[str]) -> Batch:
        """The rows of these prompts and responses; memory is some 20 bytes a character."""
        import numpy as np

        if not self._tried:
            self._try(prompts[:_TRIED_ROWS], responses[:_TRIED_ROWS])
        layout = self._layout
        if layout is None:
            return _batch(self._encode_slowly(prompts, responses))
        nothing = np.empty(0, np.uint32)
        encoded = self._encoder.encode_settled(list(map(layout.text, prompts, responses)))
        pieces = [nothing if one is None else one for one in encoded]
        lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
        ids = np.concatenate([nothing, *pieces]).view(np.int32)
        first, sure = layout.cut(ids, lengths)
        if sure.all() and lengths.max(initial=0) <= self._max_tokens:
            return Batch(ids, lengths, first, np.full(len(pieces), layout.ends_with_eos), {})
        results: list[_Kept | str] = [
            (piece, prompt, layout.ends_with_eos) if len(piece) <= self._max_tokens else "over_max_tokens"
            for piece, prompt in zip(pieces, first.tolist(), strict=True)
        ]
        unsure = np.flatnonzero(~sure).tolist()
        slow = self._encode_slowly([prompts[row] for row in unsure], [responses[row] for row in unsure])
        for row, result in zip(unsure, slow, strict=True):
            results[row] = result
        return _batch(results)

    def encode(self, rows: Sequence[Row]) -> list[Tokenized | str]:
        """Each row (with `prompt` and `response`) as tokens, or the reason why it is dropped."""
        batch = self.encode_batch([row["prompt"] for row in rows], [row["response"] for row in rows])
        kept = iter(batch)
        return [batch.dropped[number] if number in batch.dropped else next(kept) for number in range(len(rows))]

    def _try(self, prompts: Sequence[str], responses: Sequence[str]) -> None:
        """Try the encoder on these rows."""
        pairs = zip(prompts, responses, strict=True)
        self._encoder.try_on([self._render(*pair)[1] for pair in pairs if not self._forbidden(*pair)])
        self._tried = True

    def _encode_slowly(self, prompts: Sequence[str], responses: Sequence[str]) -> "list[_Kept | str]":
        """Each row by itself, whatever may be special about it."""
        pairs = list(zip(prompts, responses, strict=True))
        results: list[_Kept | str] = [self._forbidden(*pair) or "" for pair in pairs]
        rendered = {index: self._render(*pair) for index, pair in enumerate(pairs) if not results[index]}
        for index, (prompt, full) in rendered.items():
            if not keeps(prompt, full, responses[index]):
                results[index] = "response_changed_by_template"
        todo = [index for index in rendered if not results[index]]
        fulls = self._encoder.encode_settled([rendered[index][1] for index in todo])
        encoded = self._encoder.encode([rendered[index][0] for index in todo])
        unsure = []
        for index, full_ids, prompt_ids in zip(todo, fulls, encoded, strict=True):
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

    def _forbidden(self, prompt: str, response: str) -> str | None:
        if self._control_in_prompt.search(prompt) or self._control_in_response.search(response):
            return "special_token_in_text"
        return None

    def _render(self, prompt: str, response: str) -> tuple[str, str]:
        """The generation prompt and the whole conversation, as text."""
        if self._shape is not None and (known := self._shape.render(prompt, response)) is not None:
            return known
        user = {"role": "user", "content": prompt}
        assistant = {"role": "assistant", "content": response}
        return (
            self._template.render([user], add_generation_prompt=True),
            self._template.render([user, assistant]),
        )

    def _cut_by_prefix(self, ids: list[int], prompt_ids: list[int]) -> "_Kept | str | None":
        """What `_cut` finds for a settled text, without offsets; None where they are needed.

        Where the tokens are the bytes of the text as it is, and the whole begins with the prompt's tokens, the
        completion begins with the next one.
        """
        first = len(prompt_ids)
        if not self._encoder.plain or ids[:first] != prompt_ids:
            return None
        end = self._end(ids, first)
        return None if end is None else self._finish(ids, first, end)

    def _end(self, ids: list[int], first: int) -> int | None:
        """Where the tokens end but for white space at the end; None where that is beyond ASCII."""
        end = len(ids)
        while end > first and ids[end - 1] != self._eos:
            text = self._text_of(ids[end - 1])
            if not text.isascii():
                return None
            if text.strip():
                break
            end -= 1
        return end

    def _kept(self, ids: list[int], first: int) -> tuple[int, bool] | None:
        """How many tokens of a settled text are kept, and whether the last of them is the end of sequence."""
        end = self._end(ids, first)
        if end is None or end == first:
            return None
        eos = ids[end - 1] == self._eos
        return end if eos else len(ids), eos

    def _cut(self, tokens: Any, prompt_ids: list[int], boundary: int, full: str) -> "_Kept | str":
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

    def _finish(self, ids: list[int], first: int, end: int) -> "_Kept | str":
        """What stands after the end of sequence is left out."""
        ends_with_eos = end > first and ids[end - 1] == self._eos
        ids = ids[:end] if ends_with_eos else ids
        if len(ids) == first:
            return "empty_completion"
        if len(ids) > self._max_tokens:
            return "over_max_tokens"
        return ids, first, ends_with_eos

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
            prompt, full = self._render("What is 1+1?", response)
        except TemplateError as error:
            raise RequestError(where, f"it fails on a prompt and a response: {' '.join(str(error).split())}") from None
        if not full.startswith(prompt):
            raise RequestError(
                where,
                f"a conversation does not begin with its generation prompt, which ends in {prompt[-30:]!r}",
                "use a template whose generation prompt opens the assistant's turn and writes nothing into it",
            )
        if not keeps(prompt, full, response):
            raise RequestError(
                where,
                "it leaves out the thinking of the response, so that could not be learned",
                "use a template that renders the assistant's content as it is",
            )


def _batch(results: "Sequence[_Kept | str]") -> Batch:
    import numpy as np

    kept = [one for one in results if not isinstance(one, str)]
    pieces = [np.asarray(ids).astype(np.int32) for ids, _, _ in kept]
    return Batch(
        np.concatenate([np.empty(0, np.int32), *pieces]),
        np.array([len(piece) for piece in pieces], np.int64),
        np.array([prompt for _, prompt, _ in kept], np.int64),
        np.array([eos for _, _, eos in kept], np.bool_),
        {number: one for number, one in enumerate(results) if isinstance(one, str)},
    )


def _any_of(texts: set[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts))) or "(?!)")


@lru_cache(maxsize=2)
def _load(model: Path) -> TextEncoder:
    return TextEncoder(model)
