"""The strings in a text that a tokenizer reads as control tokens, as `<|im_end|>`. The filter `special_tokens` refuses
rows with them, the annotation `escape` rewrites them."""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_prep.thinking import THINK_CLOSE, THINK_OPEN
from reasonforge.errors import RequestError
from reasonforge.files import read_json

THINKING = (THINK_OPEN, THINK_CLOSE)
"""They belong into a response, and not into a prompt."""
USUAL = (
    *THINKING, "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>",
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
    "<|python_tag|>",
)  # fmt: skip
"""Those of the chat templates of Qwen and Llama 3, which are looked for where a recipe names no others."""


def control_tokens(model: Path) -> tuple[str, ...]:
    """The control tokens of a model directory: what tokenizer.json adds to the vocabulary as special, what
    tokenizer_config.json gives a part (`eos_token`), and added tokens in the form of a marker, as `<tool_call>`.

    Raises RequestError for a directory without tokenizer.json.
    """
    path = model / "tokenizer.json"
    if not path.is_file():
        raise RequestError(str(path), "missing, so its special tokens are not known", "name a model's directory")
    parts = [part for path in _config_files(model) for part in read_json(path).items()]
    named = {_content(value) for key, value in parts if key.endswith("_token")}
    added = read_json(path).get("added_tokens") or []
    texts = {
        token["content"]
        for token in added
        if token.get("special") or token["content"] in named or re.fullmatch(r"[<\[].+[>\]]", token["content"])
    }
    return tuple(sorted(texts))


def files_of(model: str | None) -> tuple[Path, ...]:
    """The files that `control_tokens` reads, those that are there."""
    if model is None or not (path := Path(model) / "tokenizer.json").is_file():
        return ()
    return path, *_config_files(Path(model))


def check_escapable(token: str) -> None:
    """Raises ValueError for a token that a space inside would not take apart for good."""
    if len(token) < 2 or len(token.split()) != 1 or token != token.strip():
        raise ValueError(f"{token!r} cannot be escaped by a space: a token needs two characters or more, and no spaces")


@lru_cache(maxsize=16)
def finder(model: str | None, tokens: Sequence[str], allowed: Sequence[str]) -> re.Pattern[str]:
    """Finds the control tokens of a model and those given, the usual ones where there are neither, less some."""
    found = {*tokens, *(control_tokens(Path(model)) if model is not None else ())} or set(USUAL)
    texts = sorted(found - set(allowed), key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, texts)) or "(?!)")


def _config_files(model: Path) -> list[Path]:
    """Where a model names its tokens; older ones have special_tokens_map.json."""
    names = ("tokenizer_config.json", "special_tokens_map.json")
    return [path for name in names if (path := model / name).is_file()]


def _content(value: Any) -> Any:
    return value.get("content") if isinstance(value, dict) else value
