"""What can be known of a regular expression before it is run: that it is linear, and words a match must contain.

`rules` calls it when a table is loaded, so that no rule of a user can make reading a log slow.
"""

import importlib
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

LONGEST_GAP = 400
"""The most characters that one quantifier of a rule may span."""

SHORTEST_WORD = 2
"""Words shorter than this do not tell one line from another."""

EVERYWHERE = frozenset(
    ("loss", "grad", "norm", "rank", "error", "step", "info", "warn", "and ", "the ", "for ", "from ", "time")
)
"""Words of any healthy log; others are sought where a pattern has them."""

_NO_BOUND = f"a quantifier without a bound up to {LONGEST_GAP}: write {{0,80}} for *, {{1,80}} for +"
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")


def _find_parser() -> Callable[[str], Any] | None:
    """Python's own parser of regular expressions, which has no public name; None in a Python that hides it."""
    try:
        parse: Callable[[str], Any] = importlib.import_module("re._parser").parse
        return parse if [str(part[0]) for part in parse("a{1,2}")] == ["MAX_REPEAT"] else None
    except (ImportError, AttributeError, TypeError, IndexError):
        return None


_parse = _find_parser()
_UNBOUNDED = re.compile(r"(?<!\\)(?:\\\\){0,9}[*+](?![^\[\]]{0,400}\])|\{\d{0,9},\}")


def why_refused(pattern: str) -> str | None:
    """What is wrong with a pattern for use on any log, in words; None where it is good.

    Refused are bad syntax, quantifiers without a bound or with a large one, quantifiers inside quantified groups,
    and back references: with what is left, a search takes time linear in the length of the line. Where Python hides
    its parser, only bad syntax and quantifiers without a bound are seen.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        return f"not a regular expression: {error}"
    if _parse is None:
        return _NO_BOUND if _UNBOUNDED.search(pattern) else None
    return _why_slow(_parse(pattern), False)


def _why_slow(tree: Any, repeated: bool) -> str | None:
    for operator, argument in tree:
        name = str(operator)
        if name.startswith("GROUPREF"):
            return "back references can be slow"
        if name in _REPEATS:
            if argument[1] > LONGEST_GAP:
                return _NO_BOUND
            if repeated and argument[1] > 1:
                return "a quantifier inside a quantified group can be slow"
        inside_repeat = repeated or (name in _REPEATS and argument[1] > 1)
        for part in _children(name, argument):
            if found := _why_slow(part, inside_repeat):
                return found
    return None


def _children(name: str, argument: Any) -> list[Any]:
    if name in _REPEATS:
        return [argument[2]]
    if name == "SUBPATTERN":
        return [argument[3]]
    if name == "BRANCH":
        return list(argument[1])
    if name in ("ASSERT", "ASSERT_NOT"):
        return [argument[1]]
    return [argument] if name == "ATOMIC_GROUP" else []


def words(pattern: str) -> set[str]:
    """Lower-case words of which every text that matches contains at least one; empty where none are known."""
    return _words(_parse(pattern)) if _parse is not None else set()


def _words(tree: Any) -> set[str]:
    """The best choice among the runs of plain characters and the groups of one sequence."""
    choices: list[set[str]] = []
    run = ""
    for operator, argument in [*tree, (None, None)]:
        name = str(operator)
        if name == "LITERAL" and argument < 128:
            run += chr(argument).lower()
            continue
        if len(run) >= SHORTEST_WORD:
            choices.append({run})
        run = ""
        if name == "SUBPATTERN":
            choices.append(_words(argument[3]))
        elif name in _REPEATS and argument[0] > 0:
            choices.append(_words(argument[2]))
        elif name == "BRANCH":
            parts = [_words(part) for part in argument[1]]
            choices.append(set().union(*parts) if all(parts) else set())
    return max(choices, key=lambda found: min(map(_worth, found), default=0), default=set())


def _worth(word: str) -> int:
    return 1 if any(common in word and len(word) < len(common) + 3 for common in EVERYWHERE) else len(word)


def any_word(found: Iterable[str]) -> "re.Pattern[bytes]":
    """One regular expression that finds any of the words in lower-case bytes; words share their beginnings."""
    return _one_pattern(frozenset(found))


@lru_cache(maxsize=16)
def _one_pattern(found: frozenset[str]) -> "re.Pattern[bytes]":
    trie: dict[str, Any] = {}
    for word in found:
        node = trie
        for letter in word:
            node = node.setdefault(letter, {})
        node[""] = {}
    return re.compile(_render(trie).encode())


def _render(node: dict[str, Any]) -> str:
    if "" in node:
        return ""
    parts = [re.escape(letter) + _render(node[letter]) for letter in sorted(node)]
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"
