"""Which natural language a text is in, and how much of it is in another one. The annotation and the filter `language`
call it.

Where the script leaves one language, that decides: no model is asked about Chinese, Japanese, Korean, Greek, Thai.
Between languages of one script py3langid decides, a naive Bayes classifier over byte n-grams (Lui and Baldwin, ACL
2012), whose wheel carries its model of 97 languages; the same text gives the same result everywhere.
"""

import importlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from data_prep.annotation.prose import prose
from data_prep.annotation.scripts import leave_out, weigh
from reasonforge.errors import RequestError

LEAST_LETTERS = 20
"""Letters of prose below which a text is too short for a language (see `scripts.weigh` for how they are counted)."""
PASSAGE_LETTERS = 40
"""Letters from which a passage, one sentence or a few short ones, is judged by itself."""
READ_LETTERS = 2000
"""How much of a text is read for its language: passages from all over it."""
SURE = 0.8
"""The least probability of a text's language, together with those close to it."""
FOREIGN = 0.5
"""The least probability of a passage's language, where it is not the text's."""
OWN = 0.1
"""The probability of the text's own language below which a passage is not in it."""
KNOWN = 0.6
"""A passage with this share of words that stood in the text's language before is in it too."""

_ALONE = {
    "Kana": "ja", "Hangul": "ko", "Han": "zh", "Greek": "el", "Thai": "th", "Georgian": "ka", "Armenian": "hy",
    "Tamil": "ta", "Telugu": "te", "Kannada": "kn", "Malayalam": "ml", "Gujarati": "gu", "Gurmukhi": "pa",
    "Sinhala": "si", "Lao": "lo", "Khmer": "km", "Myanmar": "my", "Tibetan": "bo",
}  # fmt: skip
_CLOSE = tuple(map(frozenset, (
    ("id", "ms"), ("hr", "sr", "bs"), ("cs", "sk"), ("no", "nb", "nn", "da"), ("pt", "gl"), ("es", "gl"), ("nl", "af"),
)))  # fmt: skip
"""Languages too close to be told apart in a sentence."""

_SENTENCE = re.compile(r"[^.!?;。！？；।\n]*(?:[.!?;。！？；।]+|\n|$)")
_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class Reading:
    """What was found: `language` of the response and `prompt_language` as ISO 639-1 codes, None where there is too
    little prose or it is not clear; `mixed`, the share of the response's letters in another language or script (0..1,
    four decimals) than the prompt's language, or its own where the prompt has none; None without a language."""

    language: str | None
    prompt_language: str | None
    mixed: float | None

    def is_one_of(self, languages: Iterable[str]) -> bool:
        """Whether the response may be in one of some languages; so may one that is close, and one that is not known."""
        return self.language is None or any(_close(self.language, language) for language in languages)

    @property
    def as_prompted(self) -> bool:
        """Whether both languages may be the same; so may two that are too close, and one that is not known."""
        return self.language is None or self.prompt_language is None or _close(self.language, self.prompt_language)


@dataclass(frozen=True)
class _Passage:
    text: str
    scripts: Counter[str]

    @property
    def letters(self) -> int:
        return self.scripts.total()

    def written_in(self, script: str) -> str:
        """The text without the letters of other scripts."""
        return leave_out(self.text, self.scripts.keys() - {script})


def read(prompt: str, response: str) -> Reading:
    """Read one row. Raises RequestError where py3langid is not installed."""
    asked = _language(list(_passages(prose(prompt))))
    passages = list(_passages(prose(response)))
    language = _language(passages)
    home = asked or language
    enough = sum(passage.letters for passage in passages) >= LEAST_LETTERS
    mixed = _mixed(passages, *home) if home and enough else None
    return Reading(language[0] if language else None, asked[0] if asked else None, mixed)


def _passages(text: str) -> Iterator[_Passage]:
    """Sentences, short ones together with the next."""
    kept: list[str] = []
    scripts: Counter[str] = Counter()
    for found in _SENTENCE.findall(text):
        kept.append(found)
        scripts.update(weigh(found))
        if scripts.total() >= PASSAGE_LETTERS:
            yield _Passage("".join(kept), scripts)
            kept, scripts = [], Counter()
    if scripts:
        yield _Passage("".join(kept), scripts)


def _language(passages: list[_Passage]) -> tuple[str, str] | None:
    """The language of a text and its main script; None where there is too little text, or it is not clear."""
    weights: Counter[str] = Counter()
    for passage in passages:
        weights[_main_script(passage.scripts)] += passage.letters
    if weights.total() < LEAST_LETTERS:
        return None
    script = max(weights, key=lambda name: (weights[name], name))
    if script in _ALONE:
        return _ALONE[script], script
    mine = [passage for passage in passages if 2 * passage.scripts[script] >= passage.letters] or passages
    step = -(-sum(passage.letters for passage in mine) // READ_LETTERS)
    ranked = _rank(" ".join(passage.written_in(script) for passage in mine[::step]))
    language = ranked[0][0]
    sure = sum(probability for name, probability in ranked if _close(name, language)) >= SURE
    return (language, script) if sure else None


def _mixed(passages: Iterable[_Passage], home: str, script: str) -> float:
    """The share of the letters that are not in a text's home language, or not in its script.

    Words in Latin letters (names, terms) belong to a passage that is mostly in another script.
    """
    seen: set[str] = set()
    total = foreign = 0
    for passage in passages:
        total += passage.letters
        if passage.letters >= PASSAGE_LETTERS and _is_foreign(passage, home, script, seen):
            foreign += passage.letters
            continue
        strange = sum(weight for name, weight in passage.scripts.items() if name != script)
        if script == "Kana":
            strange -= passage.scripts["Han"]
        if script != "Latin" and 2 * passage.scripts["Latin"] <= passage.letters:
            strange -= passage.scripts["Latin"]
        foreign += strange
    return round(foreign / total, 4)


def _main_script(scripts: Counter[str]) -> str:
    """The script with most letters in a passage; Chinese characters are Japanese where there is a kana for ten."""
    found = Counter(scripts)
    if found["Kana"] and found["Kana"] * 10 >= found["Han"]:
        found["Kana"] += found.pop("Han", 0)
    return max(found, key=lambda name: (found[name], name))


def _is_foreign(passage: _Passage, home: str, script: str, seen: set[str]) -> bool:
    """Whether a passage is clearly in another language; `seen` are the words of those that are not, so far."""
    if script in ("Han", "Kana"):  # they share most characters, so only a whole sentence tells
        return {"Han", "Kana"} == {script, _main_script(passage.scripts)}
    if script in _ALONE or passage.scripts[script] < PASSAGE_LETTERS:
        return False
    words = _WORD.findall(passage.text.lower())
    if words and sum(word in seen for word in words) >= KNOWN * len(words):
        return False
    ranked = _rank(passage.written_in(script))
    language, probability = ranked[0]
    if _close(language, home):
        seen.update(words)
        return False
    return probability >= FOREIGN and dict(ranked).get(home, 0.0) < OWN


def _close(a: str, b: str) -> bool:
    return a == b or any(a in group and b in group for group in _CLOSE)


def _rank(text: str) -> list[tuple[str, float]]:
    """Languages and their probabilities, the likeliest first."""
    found: list[tuple[str, float]] = _classifier().rank(text)
    return found


@lru_cache(maxsize=1)
def _classifier() -> Any:
    try:
        langid = importlib.import_module("py3langid.langid")
    except ImportError as error:
        raise RequestError(
            "language", f"the package cannot be imported ({error})", "pip install 'reasonforge[language]'"
        ) from None
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
