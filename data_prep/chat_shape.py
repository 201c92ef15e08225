"""Finds out whether a chat template only puts fixed text around the prompt and the response, and then does so itself.

`data_prep.chat_tokenizer` asks it, since Jinja takes longer for a row than all the rest. Nothing is guessed: the
template's syntax tree must show that what the messages say is printed as it is, or trimmed, and decides nothing else.
Only what is run for a prompt and a response is looked at: where texts decide nothing, that is the same for all texts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from data_prep.chat_template import ChatTemplate, Messages, environment


@dataclass(frozen=True)
class Shape:
    """A conversation is `before`, the prompt, `between`, the response, `after`; its generation prompt ends there too.

    It holds for texts in which there is more than white space, so that a template may ask whether there is a text.
    """

    before: str
    between: str
    after: str
    trims_prompt: bool
    trims_response: bool

    def render(self, prompt: str, response: str) -> tuple[str, str] | None:
        """The generation prompt and the whole conversation; None where only the template itself can tell."""
        stripped = prompt.strip(), response.strip()
        if not all(stripped):
            return None
        begin = self.before + (stripped[0] if self.trims_prompt else prompt) + self.between
        return begin, begin + (stripped[1] if self.trims_response else response) + self.after


def find_shape(template: ChatTemplate) -> Shape | None:
    """The shape of a template, or None where it has none that can be shown. A date in it is that of the call."""
    outer = "\u2003\x0b"  # white space that no template writes
    prompt, response = (f"{outer}{name} <&>'\"{{}} {name[::-1]}{outer}" for name in ("qUeStIoN7", "aNsWeR8"))
    user, assistant = {"role": "user", "content": prompt}, {"role": "assistant", "content": response}
    traced = _Traced(template)
    opened, full = traced.render([user], True), traced.render([user, assistant], False)
    try:
        _check(traced)
    except _UnclearError:
        return None
    before, trims_prompt, rest = _split(full, prompt)
    between, trims_response, after = _split(rest, response)
    shape = Shape(before, between, after, trims_prompt, trims_response)
    once = not any(part.strip() in fixed for part in (prompt, response) for fixed in (before, between, after))
    return shape if once and shape.render(prompt, response) == (opened, full) else None


class _Traced:
    """A template that remembers which branches were run."""

    def __init__(self, template: ChatTemplate) -> None:
        from jinja2 import nodes

        self._template = template
        self.tree = environment().parse(template.text)
        self.reached: set[int] = set()
        """By the number of the mark with which a branch begins."""
        for number, node in enumerate(list(self.tree.find_all(nodes.If))):
            for branch, body in enumerate((node.body, node.else_)):
                call = nodes.Call(nodes.Name(_MARK, "load"), [nodes.Const(2 * number + branch)], [], None, None)
                body.insert(0, nodes.Output([call]))
        self.tree.set_lineno(1).set_environment(environment())
        self._compiled = environment().from_string(self.tree)

    def render(self, messages: Messages, add_generation_prompt: bool) -> str:
        text: str = self._compiled.render(
            **self._template.variables(messages, add_generation_prompt), **{_MARK: self._mark}
        )
        return text

    def _mark(self, number: int) -> str:
        self.reached.add(number)
        return ""

    def branches(self, node: Any) -> Iterator[Any]:
        """The statements of an `if` that were run."""
        for body in (node.body, node.else_):
            if body[0].nodes[0].args[0].value in self.reached:
                yield from body[1:]


_MARK = "reasonforge_reached"


def _split(text: str, part: str) -> tuple[str, bool, str]:
    """What is before a part, whether the part is trimmed, and what is after it."""
    before, found, after = text.partition(part)
    if found:
        return before, False, after
    before, _, after = text.partition(part.strip())
    return before, True, after


class _UnclearError(Exception):
    """The template does something that is not understood here."""


class _Kind(IntEnum):
    """What an expression may be made of; the larger of two is what either of them may be."""

    FIXED = 0
    """Nothing that a message says."""
    TRIMMED = 1
    """What one message says, without the white space around it."""
    CONTENT = 2
    """What one message says."""
    TEXT = 3
    """That with fixed text before or after it."""
    MESSAGES = 4
    """The messages, some of them, or one of them."""


_Names = dict[str, _Kind]

_SAME_FOR_ALL_TEXTS = {"defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number"}
"""Jinja's tests whose answer does not depend on what a text says."""
_RANDOM = {"random", "lipsum"}
_INDIRECT = {"self", "super", "caller", "varargs", "kwargs"}


def _check(traced: _Traced) -> None:
    """Raise _UnclearError unless what messages say goes to the output, in whatever order, and nowhere else."""
    names: _Names = {"messages": _Kind.MESSAGES}
    while True:  # a loop may use what its end has set
        before = dict(names)
        _statements(traced.tree.body, names, traced)
        if names == before:
            return


def _statements(body: Iterable[Any], names: _Names, traced: _Traced) -> None:
    for node in body:
        kind = type(node).__name__
        if kind == "Output":
            for one in node.nodes:
                if _kind(one, names) == _Kind.MESSAGES:
                    raise _UnclearError
        elif kind == "If":
            _kind(node.test, names)
            _statements((*traced.branches(node), *node.elif_), names, traced)
        elif kind == "For":
            _loop(node, names, traced)
        elif kind == "Assign":
            _assign(node.target, _kind(node.node, names), names)
        elif kind == "Scope":
            _statements(node.body, names, traced)
        elif kind not in ("Break", "Continue"):
            raise _UnclearError


def _loop(node: Any, names: _Names, traced: _Traced) -> None:
    found = _kind(node.iter, names)
    if node.recursive or found not in (_Kind.FIXED, _Kind.MESSAGES):
        raise _UnclearError
    _assign(node.target, found, names)
    if node.test is not None:
        _kind(node.test, names)
    _statements((*node.body, *node.else_), names, traced)


def _assign(target: Any, found: _Kind, names: _Names) -> None:
    """A name may be, anywhere in the template, what it is set to somewhere."""
    if type(target).__name__ == "Name":
        names[target.name] = _either([names.get(target.name, _Kind.FIXED), found])
    elif found != _Kind.FIXED:  # several names, or a part of a namespace
        raise _UnclearError


def _kind(node: Any, names: _Names) -> _Kind:
    """What an expression is made of. Any text may be asked whether it is empty: none of the rows' is."""
    name = type(node).__name__
    if name == "Name":
        if node.name in _INDIRECT | _RANDOM or node.name == "loop":  # but for parts of a loop, as below
            raise _UnclearError
        return names.get(node.name, _Kind.FIXED)
    if name in ("Getattr", "Getitem"):
        return _part(node, names)
    if name == "Filter":
        return _filtered(node, names)
    if name == "Call":
        return _called(node, names)
    parts = [_kind(part, names) for part in node.iter_child_nodes() if type(part).__name__ != "Operand"]
    if name == "Not" or (name == "Test" and node.name in _SAME_FOR_ALL_TEXTS):
        return _Kind.FIXED
    if name in ("And", "Or", "CondExpr"):
        return _either(parts)
    if name in ("Add", "Concat") and _Kind.MESSAGES not in parts:
        return _Kind.TEXT if any(parts) else _Kind.FIXED
    if name == "Compare":
        parts += [_compared(operand, names) for operand in node.ops]
    if any(parts):
        raise _UnclearError
    return _Kind.FIXED


def _compared(operand: Any, names: _Names) -> _Kind:
    """Of what something fixed is compared with. What keys a message has is fixed, too."""
    found = _kind(operand.expr, names)
    return _Kind.FIXED if found == _Kind.MESSAGES and operand.op in ("in", "notin") else found


def _either(kinds: list[_Kind]) -> _Kind:
    found = max(kinds)
    if found == _Kind.MESSAGES and set(kinds) - {_Kind.MESSAGES, _Kind.FIXED}:
        raise _UnclearError
    return found


def _part(node: Any, names: _Names) -> _Kind:
    """An attribute or an item of something."""
    if type(node).__name__ == "Getattr":
        key: Any = node.attr
    else:
        if _kind(node.arg, names) != _Kind.FIXED:
            raise _UnclearError
        key = getattr(node.arg, "value", None)
    if _is_loop(node.node):
        if not isinstance(key, str):
            raise _UnclearError
        return _Kind.MESSAGES if key in ("previtem", "nextitem") else _Kind.FIXED
    whole = _kind(node.node, names)
    if whole == _Kind.FIXED:
        return whole
    if whole != _Kind.MESSAGES:
        raise _UnclearError
    if not isinstance(key, str):
        if not _is_number(getattr(node, "arg", None)):
            raise _UnclearError
        return whole
    if hasattr(dict, key) or hasattr(list, key):
        raise _UnclearError
    return _Kind.CONTENT if key == "content" else _Kind.FIXED


def _is_number(node: Any) -> bool:
    """Whether an index is a number for certain, or a range of them, so that it cannot be "content"."""
    name = type(node).__name__
    if name == "Const":
        return isinstance(node.value, int)
    if name == "Getattr":
        return _is_loop(node.node)
    if name == "Add":
        return _is_number(node.left) or _is_number(node.right)
    return name in ("Sub", "Neg", "Slice")


def _is_loop(node: Any) -> bool:
    return type(node).__name__ == "Name" and node.name == "loop"


def _filtered(node: Any, names: _Names) -> _Kind:
    if node.node is None or node.name in _RANDOM:
        raise _UnclearError
    found, others = _kind(node.node, names), [_kind(one, names) for one in _arguments(node)]
    if any(others):
        raise _UnclearError
    if found == _Kind.FIXED:
        return found
    if found == _Kind.MESSAGES and node.name in ("length", "count"):
        return _Kind.FIXED
    if found == _Kind.MESSAGES and node.name in ("first", "last", "list", "reverse"):
        return found
    return _trimmed(found, node.name == "trim" and not others)


def _called(node: Any, names: _Names) -> _Kind:
    arguments = [_kind(one, names) for one in _arguments(node)]
    if any(arguments):
        raise _UnclearError
    if type(node.node).__name__ == "Getattr" and not _is_loop(node.node.node):
        found = _kind(node.node.node, names)
        if found not in (_Kind.FIXED, _Kind.MESSAGES):
            return _trimmed(found, node.node.attr == "strip" and not arguments)
    if _kind(node.node, names) != _Kind.FIXED:
        raise _UnclearError
    return _Kind.FIXED


def _trimmed(found: _Kind, only_trims: bool) -> _Kind:
    if found not in (_Kind.CONTENT, _Kind.TRIMMED) or not only_trims:
        raise _UnclearError
    return _Kind.TRIMMED


def _arguments(node: Any) -> Iterator[Any]:
    yield from node.args
    yield from (one.value for one in node.kwargs)
    yield from (one for one in (node.dyn_args, node.dyn_kwargs) if one is not None)
