"""The writing systems (Unicode scripts) of a text's letters. `data_prep.annotation.identify` calls it.

Runs of code points stand for scripts; what is of no script in the table (digits, symbols, mathematical letters) is
not counted. Source: the Unicode Character Database, Blocks.txt and Scripts.txt.
"""

import re
from collections.abc import Iterable

CJK_WEIGHT = 3
"""A Chinese, Japanese or Korean character stands for about as much text as three letters of an alphabet."""

_RANGES: dict[str, tuple[tuple[int, int], ...]] = {
    "Latin": ((0x41, 0x5A), (0x61, 0x7A), (0xAA, 0xAA), (0xBA, 0xBA), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x2AF),
              (0x1E00, 0x1EFF), (0xFB00, 0xFB06), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A)),
    "Han": ((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF),
            (0x20000, 0x3FFFF)),
    "Kana": ((0x3041, 0x309F), (0x30A1, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9D)),
    "Hangul": ((0x1100, 0x11FF), (0x3131, 0x318E), (0xA960, 0xA97F), (0xAC00, 0xD7FF)),
    "Cyrillic": ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
    "Greek": ((0x370, 0x37D), (0x37F, 0x3FF), (0x1F00, 0x1FFF)),
    "Arabic": ((0x620, 0x65F), (0x66E, 0x6EF), (0x6FA, 0x6FF), (0x750, 0x77F), (0x870, 0x8FF), (0xFB50, 0xFDFB),
               (0xFE70, 0xFEFC)),
    "Hebrew": ((0x591, 0x5F2), (0xFB1D, 0xFB4F)),
    "Devanagari": ((0x900, 0x963), (0x971, 0x97F), (0xA8E0, 0xA8FF)),
    "Bengali": ((0x980, 0x9E3), (0x9F0, 0x9F1)),
    "Gurmukhi": ((0xA01, 0xA5E), (0xA70, 0xA75)),
    "Gujarati": ((0xA81, 0xAE3), (0xAF9, 0xAFF)),
    "Tamil": ((0xB82, 0xBD7),),
    "Telugu": ((0xC00, 0xC63),),
    "Kannada": ((0xC80, 0xCE3),),
    "Malayalam": ((0xD00, 0xD63), (0xD7A, 0xD7F)),
    "Sinhala": ((0xD81, 0xDDF),),
    "Thai": ((0xE01, 0xE3A), (0xE40, 0xE4E)),
    "Lao": ((0xE81, 0xECD), (0xEDC, 0xEDF)),
    "Tibetan": ((0xF40, 0xFBC),),
    "Myanmar": ((0x1000, 0x103F), (0x1050, 0x108F)),
    "Georgian": ((0x10A0, 0x10FA), (0x10FC, 0x10FF), (0x1C90, 0x1CBF), (0x2D00, 0x2D2D)),
    "Ethiopic": ((0x1200, 0x135A), (0x1380, 0x138F)),
    "Armenian": ((0x531, 0x556), (0x561, 0x587)),
    "Khmer": ((0x1780, 0x17D3),),
}  # fmt: skip


def _inside(ranges: Iterable[tuple[int, int]]) -> str:
    """Runs of code points as the inside of a character class, those of ASCII left out."""
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges if last > 0x7F)


_LETTERS = {script: re.compile(f"[{_inside(ranges)}]+") for script, ranges in _RANGES.items()}
_ANY_LETTERS = re.compile("[" + "".join(map(_inside, _RANGES.values())) + "]+")
_ASCII_LETTERS = re.compile(r"[A-Za-z]+")


def weigh(text: str) -> dict[str, int]:
    """How much of a text each script has: letters, a Chinese, Japanese or Korean one counted `CJK_WEIGHT` times."""
    latin = sum(map(len, _ASCII_LETTERS.findall(text)))
    found = {"Latin": latin} if latin else {}
    others = "" if text.isascii() else "".join(_ANY_LETTERS.findall(text))
    while others:
        script = next(script for script, letters in _LETTERS.items() if letters.match(others))
        left = _LETTERS[script].sub("", others)
        weight = CJK_WEIGHT if script in ("Han", "Kana", "Hangul") else 1
        found[script] = found.get(script, 0) + weight * (len(others) - len(left))
        others = left
    return found


def leave_out(text: str, scripts: Iterable[str]) -> str:
    """A text without the letters of some scripts."""
    for script in scripts:
        text = _LETTERS[script].sub(" ", text)
        if script == "Latin":
            text = _ASCII_LETTERS.sub(" ", text)
    return text
