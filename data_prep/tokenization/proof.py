"""Shows that a chat template does the same with all texts that are alike, by running it once and reading its tree.

`shape` asks it. Nothing is guessed: of the statements that were run, each that sees what a
message says must only print it, join it, cut it at fixed marks, trim white space off it, or ask whether it has a mark.
"""

from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Any

from data_prep.tokenization.template import ChatTemplate, Messages, environment


class TracedTemplate:
    """A template that remembers which branches were run.

    Args:
        template: as it is in the model's directory.
    """

    def __init__(self, template: ChatTemplate) -> None:
        from jinja2 import nodes

        self._template = template
        self.tree = environment().parse(template.text)
        self._reached: set[int] = set()
        """By the number of the mark with which a branch begins."""
        for number, node in enumerate(list(self.tree.find_all(nodes.If))):
            for branch, body in enumerate((node.body, node.else_)):
                call = nodes.Call(nodes.Name(_MARK, "load"), [nodes.Const(2 * number + branch)], [], None, None)
                body.insert(0, nodes.Output([call]))
        self.tree.set_lineno(1).set_environment(environment())
        self._compiled = environment().from_string(self.tree)

    @property
    def constants(self) -> str:
        """All that is written in the template, one after the other."""
        from jinja2 import nodes

        texts = [one.data for one in self.tree.find_all(nodes.TemplateData)]
        return "\n".join([*texts, *(str(one.value) for one in self.tree.find_all(nodes.Const))])

    def run(self, prompt: str, response: str) -> tuple[str, str, set[str]] | None:
        """The generation prompt and the whole conversation, and the marks for which the template looked in the texts.

        It does the same with other texts, as long as these marks and the white space at the ends of texts stay where
        they are, and a text in which there is something does not become empty. None where that cannot be shown.
        """
        from jinja2 import TemplateError

        user, assistant = {"role": "user", "content": prompt}, {"role": "assistant", "content": response}
        self._reached.clear()
        check = _Check(self)
        try:
            opened, full = self._render([user], True), self._render([user, assistant], False)
            check.run()
        except (TemplateError, _UnclearError):
            return None
        return opened, full, check.marks

    def branches(self, node: Any) -> Iterator[Any]:
        """The statements of an `if` that were run."""
        for body in (node.body, node.else_):
            if body[0].nodes[0].args[0].value in self._reached:
                yield from body[1:]

    def _render(self, messages: Messages, add_generation_prompt: bool) -> str:
        text: str = self._compiled.render(
            **self._template.variables(messages, add_generation_prompt), **{_MARK: self._mark}
        )
        return text

    def _mark(self, number: int) -> str:
        self._reached.add(number)
        return ""


_MARK = "reasonforge_reached"


class _UnclearError(Exception):
    """The template does something that is not understood here."""


class _Kind(IntEnum):
    """What an expression may be made of; the larger of two is what either of them may be."""

    FIXED = 0
    """Nothing that a message says."""
    TEXT = 1
    """What messages say, whole or in pieces, with fixed text among it."""
    TEXTS = 2
    """A list of such."""
    MESSAGES = 3
    """The messages, some of them, or one of them."""


_SAME_FOR_ALL_TEXTS = {"defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number"}
"""Jinja's tests whose answer does not depend on what a text says."""
_RANDOM = {"random", "lipsum"}
_INDIRECT = {"self", "super", "caller", "varargs", "kwargs"}


class _Check:
    """One reading of the statements that were run.

    Of a name it is only known what it may be anywhere in the template, whichever statement comes first.
    """

    def __init__(self, traced: TracedTemplate) -> None:
        self.marks: set[str] = set()
        """What is looked for in texts."""
        self._traced = traced
        self._names: dict[str, _Kind] = {"messages": _Kind.MESSAGES}
        self._macros: dict[str, Any] = {}

    def run(self) -> None:
        """Raise _UnclearError where a statement does more with what messages say than is understood."""
        while True:  # a loop may use what its end has set
            before = dict(self._names), dict(self._macros)
            self._statements(self._traced.tree.body)
            if (self._names, self._macros) == before:
                return

    def _statements(self, body: Iterable[Any]) -> None:
        for node in body:
            kind = type(node).__name__
            if kind == "Output":
                if any(self._kind(one) > _Kind.TEXT for one in node.nodes):
                    raise _UnclearError
            elif kind == "If":
                self._kind(node.test)
                self._statements((*self._traced.branches(node), *node.elif_))
            elif kind == "For":
                self._loop(node)
            elif kind == "Assign":
                self._assign(node.target, self._kind(node.node))
            elif kind == "Scope":
                self._statements(node.body)
            elif kind == "Macro":
                self._macro(node)
            elif kind not in ("Break", "Continue"):
                raise _UnclearError

    def _loop(self, node: Any) -> None:
        found = self._kind(node.iter)
        if node.recursive or found not in (_Kind.FIXED, _Kind.MESSAGES):
            raise _UnclearError
        self._assign(node.target, found)
        if node.test is not None:
            self._kind(node.test)
        self._statements((*node.body, *node.else_))

    def _macro(self, node: Any) -> None:
        if node.name in self._names or self._macros.setdefault(node.name, node) is not node:
            raise _UnclearError
        for value in node.defaults:
            if self._kind(value) != _Kind.FIXED:
                raise _UnclearError
        self._statements(node.body)

    def _assign(self, target: Any, found: _Kind) -> None:
        """A name may be, anywhere in the template, what it is set to somewhere."""
        if type(target).__name__ == "Name":
            self._set(target.name, found)
        elif found != _Kind.FIXED:  # several names, or a part of a namespace
            raise _UnclearError

    def _set(self, name: str, found: _Kind) -> None:
        if name in self._macros:
            raise _UnclearError
        self._names[name] = _either([self._names.get(name, _Kind.FIXED), found])

    def _kind(self, node: Any) -> _Kind:
        """What an expression is made of. Any text may be asked whether it is empty: no part of one is."""
        name = type(node).__name__
        if name == "Name":
            if node.name in _INDIRECT | _RANDOM or node.name in self._macros or node.name == "loop":
                raise _UnclearError  # but for calls of a macro and parts of a loop, as below
            return self._names.get(node.name, _Kind.FIXED)
        if name in ("Getattr", "Getitem"):
            return self._part(node)
        if name == "Filter":
            return self._filtered(node)
        if name == "Call":
            return self._called(node)
        if name == "Compare":
            return self._compared(node)
        parts = [self._kind(part) for part in node.iter_child_nodes()]
        if name == "Not" or (name == "Test" and node.name in _SAME_FOR_ALL_TEXTS):
            return _Kind.FIXED
        if name in ("And", "Or", "CondExpr"):
            return _either(parts)
        if name in ("Add", "Concat") and max(parts) <= _Kind.TEXT:
            return max(parts)
        if any(parts):
            raise _UnclearError
        return _Kind.FIXED

    def _compared(self, node: Any) -> _Kind:
        """What keys a message has is fixed, and whether a text has a mark."""
        found = self._kind(node.expr)
        for operand in node.ops:
            other, search = self._kind(operand.expr), operand.op in ("in", "notin")
            if search and other == _Kind.TEXT and len(node.ops) == 1:
                self._look_for(node.expr)
            elif other == _Kind.MESSAGES and search and isinstance(_constant(node.expr), str):
                continue
            elif other != _Kind.FIXED:
                raise _UnclearError
        if found != _Kind.FIXED:
            raise _UnclearError
        return _Kind.FIXED

    def _part(self, node: Any) -> _Kind:
        """An attribute or an item of something."""
        if type(node).__name__ == "Getattr":
            key: Any = node.attr
        else:
            if self._kind(node.arg) != _Kind.FIXED:
                raise _UnclearError
            key = getattr(node.arg, "value", None)
        if _is_loop(node.node):
            if not isinstance(key, str):
                raise _UnclearError
            return _Kind.MESSAGES if key in ("previtem", "nextitem") else _Kind.FIXED
        whole = self._kind(node.node)
        if whole == _Kind.FIXED:
            return whole
        if whole == _Kind.TEXTS and _is_integer(getattr(node, "arg", None)):
            return _Kind.TEXT
        if whole != _Kind.MESSAGES:
            raise _UnclearError
        if not isinstance(key, str):
            if not _is_number(getattr(node, "arg", None)):
                raise _UnclearError
            return whole
        if hasattr(dict, key) or hasattr(list, key):
            raise _UnclearError
        return _Kind.TEXT if key == "content" else _Kind.FIXED

    def _filtered(self, node: Any) -> _Kind:
        if node.node is None or node.name in _RANDOM:
            raise _UnclearError
        found, others = self._kind(node.node), [self._kind(one) for one in _arguments(node)]
        if any(others):
            raise _UnclearError
        if found == _Kind.FIXED:
            return found
        if found == _Kind.MESSAGES and node.name in ("length", "count"):
            return _Kind.FIXED
        if found == _Kind.MESSAGES and node.name in ("first", "last", "list", "reverse"):
            return found
        if found == _Kind.TEXTS and node.name in ("first", "last"):
            return _Kind.TEXT
        if found == _Kind.TEXT and node.name == "trim" and not others:
            return found
        raise _UnclearError

    def _called(self, node: Any) -> _Kind:
        given = list(_arguments(node))
        arguments = [self._kind(one) for one in given]
        macro = self._macros.get(getattr(node.node, "name", ""))
        if macro is not None:
            return self._called_macro(macro, node, arguments)
        if any(arguments):
            raise _UnclearError
        if type(node.node).__name__ == "Getattr" and not _is_loop(node.node.node):
            found = self._kind(node.node.node)
            if found == _Kind.TEXT:
                return self._method(node.node.attr, given)
            if found == _Kind.TEXTS:
                raise _UnclearError
        if self._kind(node.node) != _Kind.FIXED:
            raise _UnclearError
        return _Kind.FIXED

    def _called_macro(self, macro: Any, node: Any, arguments: Sequence[_Kind]) -> _Kind:
        if node.kwargs or node.dyn_args or node.dyn_kwargs or len(arguments) > len(macro.args):
            raise _UnclearError
        for target, found in zip(macro.args, arguments, strict=False):
            self._set(target.name, found)
        return _Kind.TEXT

    def _method(self, name: str, given: Sequence[Any]) -> _Kind:
        """A method of a text."""
        if name in ("strip", "lstrip", "rstrip"):
            if given and (len(given) > 1 or not isinstance(text := _constant(given[0]), str) or text.strip()):
                raise _UnclearError
            return _Kind.TEXT
        if name in ("split", "startswith", "endswith") and len(given) == 1:
            self._look_for(given[0])
            return _Kind.TEXTS if name == "split" else _Kind.FIXED
        raise _UnclearError

    def _look_for(self, node: Any) -> None:
        text = _constant(node)
        if not isinstance(text, str) or not text:
            raise _UnclearError
        self.marks.add(text)


def _either(kinds: Sequence[_Kind]) -> _Kind:
    found = max(kinds)
    if found > _Kind.TEXT and set(kinds) - {found, _Kind.FIXED}:
        raise _UnclearError
    return found


def _constant(node: Any) -> Any:
    """The value of a constant, else None."""
    return node.value if type(node).__name__ == "Const" else None


def _is_integer(node: Any) -> bool:
    """Whether an index is a written number, which Jinja has as its negative where there is a sign."""
    node = node.node if type(node).__name__ == "Neg" else node
    return isinstance(_constant(node), int)


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


def _arguments(node: Any) -> Iterator[Any]:
    yield from node.args
    yield from (one.value for one in node.kwargs)
    yield from (one for one in (node.dyn_args, node.dyn_kwargs) if one is not None)
