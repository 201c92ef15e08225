"""The filter `repetition`: drops responses that got stuck and say the same again and again."""

import zlib
from typing import Any, Literal

from pydantic import Field

from data_prep.filters.base import Filter
from data_prep.filters.loops import find_loop
from data_prep.thinking import THINK_CLOSE

TAIL_WORDS = 4000


class RepetitionFilter(Filter):
    """Drops a response that compresses too well, whose thinking or whole text ends in a loop, or that has one inside.

    Measured with zlib level 6, see tests/data_prep/test_filters.py: running-sum traces compress 0.9 to 1.5 times,
    sympy's docstrings of 2 to 18 KB 2.0 to 5.8 times (median 2.7), careful enumerations of hundreds of cases in one
    wording up to 9.1 times, a sentence said 30 times over 19 times and more. Of loops of 400 characters and 4 repeats
    that were planted into 6,000 characters of such docstrings, with periods of 1 to 1,500 characters, all were found
    at the end and inside; of 3,525 docstrings without one, none was dropped.
    """

    type: Literal["repetition"] = "repetition"

    max_compression: float = Field(default=12.0, gt=1)
    """The largest ratio of UTF-8 bytes to zlib bytes (level 6) of the response."""
    loop_repeats: int = Field(default=4, ge=2)
    """How many times in a row a run of words must stand at the end to be a loop."""
    loop_words: int = Field(default=64, ge=2)
    """How many words all the repeats together must have at the end: "0, 0, 0, 0" is no loop."""
    loop_characters: int = Field(default=400, ge=64)
    """How many characters all the repeats together must have anywhere in the text, spaces or not."""

    def reason(self, row: dict[str, Any]) -> str | None:
        """Whether the text compresses too well, ends in a loop, or has one inside."""
        response = row["response"]
        data = response.encode()
        if len(data) > self.max_compression * len(zlib.compress(data)):
            return f"compresses more than {self.max_compression:g} times"
        thinking = response.rpartition(THINK_CLOSE)[0]
        if any(self._loops(text.split()[-TAIL_WORDS:]) for text in (response, thinking)):
            return "ends in a loop"
        loop = find_loop(response, self.loop_repeats, self.loop_characters)
        if loop is not None:
            return "ends in a loop" if loop.stop == len(response) else "has a loop inside"
        return None

    def _loops(self, words: list[str]) -> bool:
        """Whether the words end in the same run of words, `loop_repeats` times or more."""
        words.reverse()
        total = len(words)
        for period in range(1, total // self.loop_repeats + 1):
            needed = max(period * self.loop_repeats, self.loop_words)
            if needed > total or words[0] != words[period]:
                continue
            if words[: needed - period] == words[period:needed]:
                return True
        return False
