"""Texts to token ids with the tokenizer.json of a Hugging Face model directory, by the fastest encoder that is exact.

The writers of `data_prep.formats` and `chat` call it; neither torch nor transformers is imported.
gigatoken takes the texts on which it is known to agree with `tokenizers`, fastokens the others, and `tokenizers` all
of them where a tokenizer, or this machine, has no faster way: the ids are the same.
"""

import importlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from reasonforge.errors import RequestError
from reasonforge.files import read_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ids = NDArray[np.uint32]
    """The tokens of one text, (tokens,)."""

FAST_ENGINES = ("gigatoken", "fastokens")
"""The encoders that are tried before `tokenizers`."""
SAMPLE_CHARACTERS = 65_536
"""How much of the real text a fast encoder must encode as `tokenizers` does before it is used."""
PIECE_CHARACTERS = 4096
"""How much of one text goes into that sample at most."""

_PROBES = (
    "I'll say: it's 12345 + 6.7e-8, isn't it?\n\n\tNO - IT'S NOT'S  \r\n   x_1 = {a[0]}; // end \n \n",
    "naïve café, Straße, İstanbul, ſ'ſ 'ſ; Ελληνικά, русский, עברית, العربية, 中文字符, 日本語テスト, 한국어",
    "∀x ∈ ℝ: √2 ≠ ½ → “quoted” – €5…\u00a0\u2003\u2028\u3000end 😀🤖\u200b\ufeff x\x00y\x1c\x85z",
    "दिल्ली, ไทย, e\u0301\u0323 \u1df2\U0001193e",
    "",
    " ",
    "\n",
    "a" * 200,
)
"""Made-up texts on which a fast encoder is tried too, together with every added token."""

_BEFORE_DIGITS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_AFTER_DIGITS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_KNOWN_SPLITS = tuple(_BEFORE_DIGITS + digits + _AFTER_DIGITS for digits in (r"\p{N}", r"\p{N}{1,3}"))
"""How the tokenizers of Qwen 2 to 3 and of Llama 3 split; a pattern is added here once the tests hold with it."""

_ALSO_SAFE = (
    range(0x20B0, 0x20C0),  # currencies
    range(0x2600, 0x27C0),  # symbols and dingbats
    range(0x2B00, 0x2B5A),
    range(0x1F300, 0x1F650),  # emoji
    range(0x1F680, 0x1F6C6),
    range(0x1F900, 0x1FA00),
)
"""Blocks with common characters that are younger than Unicode 3.2."""


class _Backend(Protocol):
    name: str

    def encode(self, texts: Sequence[Any]) -> "list[Ids]": ...


class TextEncoder:
    """Encodes texts as `tokenizers` does, whichever encoder does the work.

    Args:
        model: a directory with tokenizer.json, and tokenizer_config.json where the model has one.
        sample: texts as they will come; a fast encoder that differs from `tokenizers` on the beginning of them, or
            on texts made up for the purpose, is not used.
        engines: which fast encoders may be used; the ids are the same with none.

    Raises RequestError for a tokenizer that is missing, damaged, or at odds with its tokenizer_config.json.
    """

    def __init__(self, model: Path, sample: Sequence[str] = (), engines: Sequence[str] = FAST_ENGINES) -> None:
        self._path = model / "tokenizer.json"
        self._config_path = model / "tokenizer_config.json"
        named = model / "special_tokens_map.json"  # older models have the names of their tokens there
        files = [path for path in (named, self._config_path) if path.is_file()]
        self.config: dict[str, Any] = {key: value for path in files for key, value in read_json(path).items()}
        """tokenizer_config.json."""
        description = _description(self._path)
        vocabulary = description["model"].get("vocab") or ()
        self.added_tokens: list[dict[str, Any]] = description.get("added_tokens") or []
        """The entries of tokenizer.json: `id`, `content`, `special` and how the token is found."""
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        self.highest_id: int = max((*ids, *(token["id"] for token in self.added_tokens)), default=0)
        """The largest id that a token has; ids may have gaps."""
        self._json = self._path.read_text(encoding="utf-8")
        if description.get("truncation") or description.get("padding"):  # no token may be lost or made up
            self._json = json.dumps(description | {"truncation": None, "padding": None})
        self._check_added_tokens()
        self._exact = _Tokenizers(self._path, self._json)
        self._normalizes = description.get("normalizer") is not None
        self.plain = _is_plain(description)
        """Whether the tokens of a settled text are its bytes, cut up."""
        self._engines = [name for name in FAST_ENGINES if name in engines and _is_known(description)]
        self._tried: list[tuple[str, list[int]]] = []
        self._try(self._made_up())
        self._first = self._start("gigatoken", _Gigatoken)
        self.try_on(sample)

    @property
    def engine(self) -> str:
        """The encoder that takes most of the texts."""
        return (self._first or self._others).name

    @property
    def vocabulary(self) -> int:
        """How many entries there are, added tokens included."""
        size: int = self._exact.core.get_vocab_size(with_added_tokens=True)
        return size

    def encode(self, texts: Sequence[str], *, special_tokens: bool = False) -> "list[Ids]":
        """The ids of each text; the names of special tokens in it become these tokens, as everywhere in `tokenizers`.

        Args:
            special_tokens: with what the tokenizer puts around a text, such as a token for its beginning.

        Raises UnicodeEncodeError (a ValueError) for a text with a lone surrogate, which has no UTF-8 form.
        """
        if self._first is None:
            found = self._encode_others(texts)
        else:
            raw = [self._settled_bytes(text) for text in texts]
            first = iter(self._first.encode([one for one in raw if one is not None]))
            rest = iter(self._encode_others([text for text, one in zip(texts, raw, strict=True) if one is None]))
            found = [next(rest if one is None else first) for one in raw]
        if not special_tokens or not any(self._around):
            return found
        import numpy as np

        before, after = (np.array(ids, np.uint32) for ids in self._around)
        return [np.concatenate((before, ids, after)) for ids in found]

    def encode_settled(self, texts: Sequence[str]) -> "list[Ids | None]":
        """What `encode` finds for the settled texts (see `is_settled`), and None for the others."""
        raw: Sequence[str | bytes | None] = self._all_settled(texts) or list(map(self._settled_bytes, texts))
        if self._first is None:
            found = iter(self._others.encode([text for text, one in zip(texts, raw, strict=True) if one is not None]))
        else:
            found = iter(self._first.encode([one for one in raw if one is not None]))
        return [None if one is None else next(found) for one in raw]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Any]:
        """The `Encoding` of each text by `tokenizers`: ids, and offsets in characters; without special tokens."""
        found: list[Any] = self._exact.core.encode_batch(list(texts), add_special_tokens=False)
        return found

    def name(self, name: str) -> str | None:
        """The content of a token that tokenizer_config.json names, as `eos_token`."""
        named = self.config.get(name)
        content = named.get("content") if isinstance(named, dict) else named
        return content if isinstance(content, str) else None

    def text_of(self, token: int) -> str:
        """What one token stands for; with U+FFFD where it is a part of a character."""
        found: str = self._exact.core.decode([token], skip_special_tokens=False)
        return found

    def named_token(self, name: str) -> int:
        """The id of a token that tokenizer_config.json names, as `eos_token`; RequestError where there is none."""
        content = self.name(name)
        where = f"{self._config_path}: {name}"
        if content is None:
            raise RequestError(where, "not set, so this token is not known", "set it to one of the tokenizer's tokens")
        found: int | None = self._exact.core.token_to_id(content)
        if found is None:
            raise RequestError(where, f"{content!r} is not a token of tokenizer.json")
        return found

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """What tokenizer.json puts before and after each text.

        transformers 5 goes by it too where the file is there, whatever `add_bos_token` says in the configuration.
        """
        whole = self._exact.core.encode("a", add_special_tokens=True)
        text = [index for index, special in enumerate(whole.special_tokens_mask) if not special]
        return whole.ids[: text[0]], whole.ids[text[-1] + 1 :]

    @cached_property
    def _others(self) -> _Backend:
        """The fastest encoder that is exact on every text."""
        return self._start("fastokens", _Fastokens) or self._exact

    def _encode_others(self, texts: Sequence[str]) -> "list[Ids]":
        for text in texts:
            if not text.isascii():
                text.encode()
        return self._others.encode(texts) if texts else []

    def try_on(self, sample: Iterable[str]) -> None:
        """Go on without a fast encoder that differs from `tokenizers` on the beginning of these texts."""
        self._try(_pieces(sample))
        if self._first and not self._agrees(self._first):
            self._first = None
        if "_others" in self.__dict__ and not self._agrees(self._others):
            self._others = self._exact

    def _try(self, texts: Iterable[str]) -> None:
        if self._engines:
            texts = list(texts)
            self._tried += zip(texts, (ids.tolist() for ids in self._exact.encode(texts)), strict=True)

    def _agrees(self, backend: _Backend) -> bool:
        """Whether an encoder finds what `tokenizers` does in all that was tried and that it is given."""
        mine = [pair for pair in self._tried if backend.name != "gigatoken" or self.is_settled(pair[0])]
        found = backend.encode([text for text, _ in mine])
        return all(ids.tolist() == expected for ids, (_, expected) in zip(found, mine, strict=True))

    def _start(self, name: str, backend: Any) -> _Backend | None:
        """An encoder if it may be used, is installed, knows this tokenizer and agrees."""
        package = _optional(name) if name in self._engines else None
        started: _Backend | None = backend.start(package, self._json) if package else None
        return started if started and self._agrees(started) else None

    def is_settled(self, text: str) -> bool:
        """Whether a text has only settled characters and is in the normal form NFC already: gigatoken is exact on it.

        The libraries carry tables of different versions of Unicode, so they disagree on which of the younger
        characters are letters, and on how NFC orders or composes the younger marks (Unicode's stability policy keeps
        the older ones, and a text of them that is in NFC, as they are).
        """
        return self._settled_bytes(text) is not None

    def _settled_bytes(self, text: str) -> str | bytes | None:
        """A settled text as gigatoken takes it fastest: in UTF-8, which ASCII is already; None for another text."""
        if text.isascii():
            return text
        raw = text.encode("utf-8", "surrogatepass")
        # Its characters beyond ASCII are few, mostly, and found faster as bytes.
        others = raw.translate(None, _ASCII).decode("utf-8", "surrogatepass")
        if _inert(others):
            return raw
        settled = all(map(_is_settled, others)) and (not self._normalizes or unicodedata.is_normalized("NFC", text))
        return raw if settled else None

    def _all_settled(self, texts: Sequence[str]) -> "list[bytes] | None":
        """As `_settled_bytes`, for texts in which every character is inert; None where one is not, or may not be."""
        import numpy as np

        raw = [text.encode("utf-8", "surrogatepass") for text in texts]
        joined = np.frombuffer(b"".join(raw), np.int8)
        others = joined[np.flatnonzero(joined < 0)].tobytes().decode("utf-8", "surrogatepass")
        return raw if _inert(others) else None

    def _made_up(self) -> Iterator[str]:
        yield from _PROBES
        for token in (one["content"] for one in self.added_tokens):
            yield f"a{token}b {token}\n{token[:-1]}{token} {token.upper()}é"

    def _check_added_tokens(self) -> None:
        """Refuse a configuration with tokens that transformers would add to those of tokenizer.json."""
        known = {token["content"]: token["id"] for token in self.added_tokens}
        for number, token in (self.config.get("added_tokens_decoder") or {}).items():
            if known.get(token["content"]) != int(number):
                raise RequestError(
                    f"{self._config_path}: added_tokens_decoder.{number}",
                    f"{token['content']!r} is not an added token of tokenizer.json",
                    "save the tokenizer again with save_pretrained of transformers",
                )


class _Tokenizers:
    """The reference."""

    name = "tokenizers"

    def __init__(self, path: Path, text: str) -> None:
        from tokenizers import Tokenizer

        try:
            self.core = Tokenizer.from_str(text)
        except Exception as error:  # noqa: BLE001 - the library raises no narrower class
            raise RequestError(str(path), f"its tokenizer cannot be loaded: {_one_line(error)}") from None

    def encode(self, texts: Sequence[str]) -> "list[Ids]":
        import numpy as np

        encoded = self.core.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.uint32) for one in encoded]


class _Gigatoken:
    """Takes texts or their UTF-8."""

    name = "gigatoken"

    def __init__(self, core: Any) -> None:
        self._core = core

    @classmethod
    def start(cls, package: Any, text: str) -> "_Gigatoken | None":
        try:
            return cls(package.Tokenizer.from_json(text))
        except (RuntimeError, ValueError):  # a normalizer or a way to split that it does not know
            return None

    def encode(self, texts: Sequence[str | bytes]) -> "list[Ids]":
        return [self._core.encode(text) for text in texts]


class _Fastokens:
    name = "fastokens"

    def __init__(self, core: Any) -> None:
        self._core = core

    @classmethod
    def start(cls, package: Any, text: str) -> "_Fastokens | None":
        try:
            return cls(package.Tokenizer.from_json_str(text))
        except (RuntimeError, ValueError):
            return None

    def encode(self, texts: Sequence[str]) -> "list[Ids]":
        import numpy as np

        ids, offsets = self._core.encode_batch_flat(list(texts))
        bounds = np.frombuffer(offsets, np.uint64).astype(np.int64)
        return np.split(np.frombuffer(ids, np.uint32), bounds[1:-1])


def _description(path: Path) -> dict[str, Any]:
    """The content of tokenizer.json."""
    if not path.is_file():
        raise RequestError(str(path), "missing, so there is no tokenizer", "save the tokenizer there")
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("model"), dict):
        raise RequestError(str(path), "its tokenizer cannot be loaded: it has no model")
    return found


def _is_plain(description: dict[str, Any]) -> bool:
    """Whether a tokenizer only cuts up the bytes of a text, after NFC or no normalizer.

    That is byte-level BPE without dropout or marks at word ends, and with added tokens that are found as written.
    """
    model, normalizer = description["model"], description.get("normalizer")
    odd = ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
    spaced = ("single_word", "lstrip", "rstrip", "normalized")
    steps = _steps(description)
    return (
        model.get("type") == "BPE"
        and not any(model.get(key) for key in odd)
        and (normalizer is None or normalizer.get("type") == "NFC")
        and all(step.get("type") == "Split" and step.get("behavior") == "Isolated" for step in steps[:-1])
        and steps[-1].get("type") == "ByteLevel"
        and not steps[-1].get("add_prefix_space")
        and not any(token.get(key) for token in description.get("added_tokens") or [] for key in spaced)
    )


def _is_known(description: dict[str, Any]) -> bool:
    """Whether a tokenizer is plain and splits in a way in which the fast encoders were compared with `tokenizers`.

    Outside of that gigatoken and fastokens ignore some settings instead of refusing them, and fastokens has another
    idea of what a space is.
    """
    steps = _steps(description)
    patterns = [(step.get("pattern") or {}).get("Regex") for step in steps[:-1]]
    return (
        _is_plain(description)
        and len(patterns) == 1
        and patterns[0] in _KNOWN_SPLITS
        and not steps[0].get("invert")
        and not steps[1].get("use_regex")
    )


def _steps(description: dict[str, Any]) -> list[dict[str, Any]]:
    splitter = description.get("pre_tokenizer") or {}
    return splitter.get("pretokenizers") or [splitter]


def _pieces(sample: Iterable[str]) -> Iterator[str]:
    """The beginnings of texts, up to what the test may cost."""
    left = SAMPLE_CHARACTERS
    for text in sample:
        yield text[: min(left, PIECE_CHARACTERS)]
        left -= len(text[: min(left, PIECE_CHARACTERS)])
        if not left:
            return


_ASCII = bytes(range(128))


@lru_cache(maxsize=1 << 16)
def _is_settled(character: str) -> bool:
    """Whether a character beyond ASCII is in Unicode 3.2, and so in all later versions, or in `_ALSO_SAFE`.

    Of the planes beyond the first, only mathematical letters and the CJK extension B are looked up. Python has the
    tables of Unicode 3.2 beside its own, so the answer does not change with Python.
    """
    point = ord(character)
    if (point < 0x10000 or point in _LOOKED_UP) and unicodedata.ucd_3_2_0.category(character) not in ("Cn", "Co", "Cs"):
        return True
    return point in _EXTENSION_B or any(point in block for block in _ALSO_SAFE)


_LOOKED_UP, _EXTENSION_B = range(0x1D400, 0x1D800), range(0x20000, 0x2A6D7)


@lru_cache(maxsize=1 << 16)
def _is_inert(character: str) -> bool:
    """Whether a settled character is left alone by NFC whatever stands beside it: no marks, no Hangul jamo."""
    return (
        _is_settled(character)
        and not 0x1160 <= ord(character) < 0x1200
        and unicodedata.category(character)[0] != "M"
        and unicodedata.is_normalized("NFC", character)
    )


_seen_inert: set[str] = set()


def _inert(characters: str) -> bool:
    """Whether all these characters are inert; most have been seen before."""
    new = set(characters) - _seen_inert
    if not all(map(_is_inert, new)):
        return False
    _seen_inert.update(new)
    return True


@lru_cache(maxsize=len(FAST_ENGINES))
def _optional(package: str) -> Any:
    """A package, or None where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError:
        return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
