"""A YAML file as data plus the line of each key, with one level of `base:` and `--set a.b=c` on top.

`reasonforge.config` turns a Document into a typed model; the lines are for its error messages.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from reasonforge.errors import RequestError

KeyPath = tuple[str | int, ...]


class Document:
    """A mapping read from YAML: `data`, and for each key path the `file:line` that last set it."""

    def __init__(self, source: str, data: dict[str, Any], lines: dict[KeyPath, str]):
        self.source, self.data, self.lines = source, data, lines

    def where(self, path: KeyPath) -> str:
        """`file:line: a.b.c` for a key; the line is that of its nearest ancestor that was written down."""
        dotted = ".".join(map(str, path))
        for length in range(len(path), 0, -1):
            if place := self.lines.get(path[:length]):
                return f"{place}: {dotted}"
        return f"{self.source}: {dotted}" if dotted else self.source


def read_document(path: Path, overrides: Sequence[str] = ()) -> Document:
    """Read a YAML file, lay it over its `base:` (a path relative to it), then apply `a.b=c` overrides in order.

    Raises RequestError for a missing file, bad YAML, a key written twice, a base of a base, a bad override.
    """
    document = _read_yaml(path)
    base_name = document.data.pop("base", None)
    if base_name is not None:
        base = _read_yaml(path.parent / str(base_name))
        if "base" in base.data:
            raise RequestError(
                base.where(("base",)),
                "a base may not have a base of its own",
                f"let {path.name} inherit from {base.data['base']} instead",
            )
        _merge(base, document.data, document.lines, ())
        document = Document(str(path), base.data, base.lines)
    for override in overrides:
        _apply_override(document, override)
    return document


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's floats: 1e-4 is a number here, as everyone who writes it means."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _read_yaml(path: Path) -> Document:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RequestError(str(path), "no such file") from None
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise RequestError(str(path), f"not a text file: {error}") from None
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise RequestError(f"{path}:{mark.line + 1}" if mark else str(path), f"not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise RequestError(str(path), f"not YAML: {error}") from None
    if not isinstance(data, dict):
        raise RequestError(str(path), f"found {type(data).__name__} at the top", "a mapping of keys is needed")
    lines: dict[KeyPath, str] = {}
    for key_path, line in _key_lines(node, ()):
        if key_path in lines:
            raise RequestError(
                f"{path}:{line}: {'.'.join(map(str, key_path))}",
                f"written twice, first at {lines[key_path]}",
                "keep one of them",
            )
        lines[key_path] = f"{path}:{line}"
    return Document(str(path), _unshared(data), lines)


def _unshared(value: Any) -> Any:
    """A copy in which YAML aliases are values of their own, so that overriding one leaves the others alone."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _key_lines(node: yaml.Node | None, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    """The path and line (from 1) of every mapping key and list item below a node."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _key_lines(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = (*path, index)
            yield here, value.start_mark.line + 1
            yield from _key_lines(value, here)


def _merge(base: Document, data: dict[str, Any], lines: dict[KeyPath, str], path: KeyPath) -> None:
    """Lay `data` over `base` in place: mappings merge key by key, all else (lists too) is replaced.

    A mapping whose `type` differs is another choice altogether, so it replaces the base's.
    """
    target: Any = base.data
    for key in path:
        target = target[key]
    for key, value in data.items():
        here = (*path, key)
        old = target.get(key)
        same_choice = (
            isinstance(value, dict)
            and isinstance(old, dict)
            and ("type" not in value or value["type"] == old.get("type"))
        )
        if same_choice:
            base.lines[here] = lines[here]
            _merge(base, value, lines, here)
            continue
        target[key] = value
        stale = [known for known in base.lines if known[: len(here)] == here]
        for known in stale:
            del base.lines[known]
        base.lines.update({known: line for known, line in lines.items() if known[: len(here)] == here})


def _apply_override(document: Document, override: str) -> None:
    """Apply one `a.b=c`; the value is read as YAML, so 3, 1e-4, true, null and [1, 2] mean what they do in a file."""
    dotted, separator, text = override.partition("=")
    where = f"--set {override}"
    if not separator or not dotted:
        raise RequestError(where, "not of the form KEY=VALUE", "for example --set stages.grpo.engine.max_steps=20")
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError:
        raise RequestError(where, f"the value {text!r} is not YAML", "quote it, as in --set 'name=\"a: b\"'") from None
    keys = dotted.split(".")
    target: Any = document.data
    for key in keys[:-1]:
        if not isinstance(target.setdefault(key, {}), dict):
            raise RequestError(where, f"{key} is not a mapping, so it has no key below it")
        target = target[key]
    target[keys[-1]] = value
    document.lines[tuple(keys)] = "--set"
