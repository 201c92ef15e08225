"""Renders a prompt and a response without Jinja, where the chat template is shown to do the same with all like them.

`chat` asks it, since Jinja takes longer for a row than all the rest. A text is parts with fixed
text around them: the marks that the template looks for (`</think>`), and white space at the ends of parts. The template
is run once for each fixed text that comes, with a character in place of each part; `proof` shows that it does the same
whatever the parts say.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from data_prep.thinking import THINK_OPEN
from data_prep.tokenization.proof import TracedTemplate
from data_prep.tokenization.template import ChatTemplate

_MOST_PARTS = 8
"""Of a prompt or of a response; a text with more is left to the template."""
_MOST_MARKS = 16
"""Likewise."""
_IN_PROMPT, _IN_RESPONSE = ("".join(map(chr, range(start, start + _MOST_PARTS))) for start in (0xFDD0, 0xFDE0))
"""Characters that stand for parts: those that Unicode keeps free for such uses."""
_STAND_IN = re.compile(f"([{_IN_PROMPT}{_IN_RESPONSE}])")
_MOST_FORMS = 4096
"""Of how many forms it is remembered what becomes of them."""

Form: TypeAlias = str
"""A text with a character in place of each part."""
_Pattern: TypeAlias = Sequence[tuple[str, bool]]
"""A form cut up: fixed texts, and characters that stand for parts."""


@dataclass(frozen=True)
class _Rendered:
    opened: _Pattern
    """The generation prompt."""
    said: _Pattern
    """What the response has become."""


class Shape:
    """What a template makes of conversations: `before`, the prompt, `between`, the response, `after`.

    The generation prompt ends with `between`. The prompt may be trimmed there, and the thinking of the response set
    apart from its answer, or the like; nothing of them but white space is left out.
    """

    def __init__(self, traced: TracedTemplate, before: str, between: str, after: str) -> None:
        self.before, self.between, self.after = before, between, after
        self._traced = traced
        self._marks = _Marks([])
        self._forms: dict[tuple[Form, Form], _Rendered | None] = {}

    def parts(self, prompt: str, response: str) -> tuple[str, str] | None:
        """The generation prompt, and what the response becomes; None where only the template itself can tell."""
        while True:
            asked, answered = self._marks.cut(prompt, _IN_PROMPT), self._marks.cut(response, _IN_RESPONSE)
            if asked is None or answered is None:
                return None
            forms, texts = (asked[0], answered[0]), asked[1] | answered[1]
            if forms not in self._forms and not self._learn(*forms):
                continue
            found = self._forms.get(forms)
            return None if found is None else (_fill(found.opened, texts), _fill(found.said, texts))

    def render(self, prompt: str, response: str) -> tuple[str, str] | None:
        """The generation prompt and the whole conversation; None where only the template itself can tell."""
        found = self.parts(prompt, response)
        return None if found is None else (found[0], found[0] + found[1] + self.after)

    def _learn(self, prompt: Form, response: Form) -> bool:
        """Find out what becomes of two forms; False where texts have to be cut anew, for more is looked for in them."""
        if len(self._forms) >= _MOST_FORMS:
            return True
        ran = self._traced.run(prompt, response)
        if ran is not None and not ran[2] <= set(self._marks.texts):
            self._marks = _Marks([*self._marks.texts, *ran[2]])
            self._forms.clear()
            return False
        self._forms[prompt, response] = None if ran is None else self._rendered(prompt, response, ran[0], ran[1])
        return True

    def _rendered(self, prompt: Form, response: Form, opened: Form, full: Form) -> _Rendered | None:
        said = full[len(opened) : len(full) - len(self.after)]
        regular = (
            opened.startswith(self.before)
            and opened.endswith(self.between)
            and len(opened) > len(self.before) + len(self.between)
            and full == opened + said + self.after
            and "".join(prompt.split()) in "".join(opened.split())
            and keeps(opened, full, response)
        )
        return _Rendered(_pattern(opened), _pattern(said)) if regular else None


def find_shape(template: ChatTemplate) -> Shape | None:
    """The shape of a template, or None where it has none that can be shown. A date in it is that of the call."""
    traced = TracedTemplate(template)
    asked, answered = _IN_PROMPT[0], _IN_RESPONSE[0]
    if _STAND_IN.search(traced.constants):
        return None
    ran = traced.run(asked, answered)
    if ran is None or ran[0].count(asked) != 1 or answered not in ran[1]:
        return None
    opened, full, _ = ran
    before, _, between = opened.partition(asked)
    shape = Shape(traced, before, between, full.rpartition(answered)[2])
    return shape if shape.parts("What?", "That.") else None


def keeps(prompt: str, full: str, response: str) -> bool:
    """Whether the whole text is the prompt, then the response; templates may trim and add spaces.

    The response's `<think>` may be the one with which the generation prompt ends.
    """
    start = len(prompt)
    if prompt.rstrip().endswith(THINK_OPEN):
        start = prompt.rindex(THINK_OPEN)
    if not full.startswith(prompt):
        return False
    return full.find(response, start) >= 0 or "".join(response.split()) in "".join(full[start:].split())


class _Marks:
    """What a template looks for in texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = sorted(set(texts))
        self._ends = tuple(mark[:size] for mark in self.texts for size in range(1, len(mark)))
        self._beginnings = tuple(mark[size:] for mark in self.texts for size in range(1, len(mark)))

    def cut(self, text: str, stand_ins: str) -> tuple[Form, dict[str, str]] | None:
        """The form of a text, and its parts by the characters that stand for them.

        None where there are none, or too many of them, or where one could make a mark together with what is beside it.
        """
        form, begin = "", 0
        parts: dict[str, str] = {}
        places = self._places(text)
        if len(places) > _MOST_MARKS:
            return None
        for start, end in (*places, (len(text), len(text))):
            between = text[begin:start]
            if part := between.strip():
                if len(parts) == len(stand_ins) or self._may_join(part):
                    return None
                place, name = between.index(part), stand_ins[len(parts)]
                form += between[:place] + name + between[place + len(part) :]
                parts[name] = part
            else:
                form += between
            form += text[max(start, begin) : end]
            begin = max(end, begin)
        return (form, parts) if parts else None

    def _places(self, text: str) -> list[tuple[int, int]]:
        """Where marks begin and end, in order; not all of them where they are too many."""
        found: list[tuple[int, int]] = []
        for mark in self.texts:
            start = text.find(mark)
            while start >= 0 and len(found) <= _MOST_MARKS:
                found.append((start, start + len(mark)))
                start = text.find(mark, start + 1)
        return sorted(found)

    def _may_join(self, part: str) -> bool:
        """Whether a mark may begin or end in a part, or be around it, if something fitting is beside it."""
        return part.endswith(self._ends) or part.startswith(self._beginnings) or any(part in one for one in self.texts)


def _pattern(form: Form) -> _Pattern:
    return [(piece, number % 2 == 1) for number, piece in enumerate(_STAND_IN.split(form))]


def _fill(pattern: _Pattern, texts: dict[str, str]) -> str:
    return "".join([texts[piece] if stands else piece for piece, stands in pattern])
