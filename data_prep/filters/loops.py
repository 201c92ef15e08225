"""Finds a run of characters that is said again and again, anywhere in a text. The filter `repetition` calls it."""

PROBE = 24
"""Characters at a place that are looked for further on: where they are again, a loop may run."""
LONGEST_PERIOD = 4000
"""Characters of the longest run that is looked for."""


def find_loop(text: str, repeats: int, least: int) -> range | None:
    """The first place where a text says the same `repeats` times or more in a row, `least` characters or more in all.

    None where there is none. With `least` of 64 or more no loop is missed: the text is looked at in places so close
    together that each loop has one of them before its last repeat, and from there it is followed to both its ends.
    """
    probe = min(PROBE, max(least // 4, 1))
    for start in range(0, len(text) - least // 2, max(least // 2 - probe, 1)):
        beginning = text[start : start + probe]
        limit = start + LONGEST_PERIOD + probe
        again = text.find(beginning, start + 1, limit)
        while again >= 0:
            period = again - start
            run = range(start - _same_before(text, start, again), again + _same_after(text, start, again))
            if len(run) >= max(least, repeats * period):
                return run
            again = text.find(beginning, again + 1, limit)
    return None


def _same_after(text: str, a: int, b: int) -> int:
    """How many characters are the same from a on and from b > a on."""
    same, step = 0, 64
    while b + same + step <= len(text) and text[a + same : a + same + step] == text[b + same : b + same + step]:
        same, step = same + step, 2 * step
    while step:
        if b + same + step <= len(text) and text[a + same : a + same + step] == text[b + same : b + same + step]:
            same += step
        step //= 2
    return same


def _same_before(text: str, a: int, b: int) -> int:
    """How many characters are the same before a and before b > a."""
    same, step = 0, 64
    while a - same - step >= 0 and text[a - same - step : a - same] == text[b - same - step : b - same]:
        same, step = same + step, 2 * step
    while step:
        if a - same - step >= 0 and text[a - same - step : a - same] == text[b - same - step : b - same]:
            same += step
        step //= 2
    return same
