"""A YAML file as data plus the line of each key, laid over another file, with `--set a.b=c` on top.

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


def read_document(
    path: Path, overrides: Sequence[str] = (), *, key: str = "base", shipped: Path | None = None
) -> Document:
    """Read a YAML file, lay it over the one that `key` names, then apply `a.b=c` overrides in order.

    Args:
        key: names the other file, by a path relative to this one.
        shipped: where a bare name without such a file is looked for, with `.yaml` behind it.
    Raises RequestError for a missing file, bad YAML, a key written twice, a base of a base, a bad override.
    """
    document = _read_yaml(path)
    base_name = document.data.pop(key, None)
    if base_name is not None:
        base_path = path.parent / str(base_name)
        if shipped is not None and not base_path.exists():
            base_path = shipped / f"{base_name}.yaml"
        base = _read_yaml(base_path)
        if key in base.data:
            raise RequestError(
                base.where((key,)),
                "a base may not have a base of its own",
                f"let {path.name} inherit from {base.data[key]} instead",
            )
        _merge(base, document.data, document.lines, ())
        document = Document(str(path), base.data, base.lines)
    for override in overrides:
        _apply_override(document, override)
    return document


def from_overrides(overrides: Sequence[str]) -> Document:
    """A document of `a.b=c` overrides alone. Raises RequestError for a bad one."""
    document = Document("--set", {}, {})
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
    except UnicodeDecodeError as error:
        raise RequestError(str(path), f"not a text file: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise RequestError(str(path), f"cannot be read: {error.strerror}") from None
    try:
        data, lines = _parse(path, text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise RequestError(f"{path}:{mark.line + 1}" if mark else str(path), f"not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date in a 13th month
        raise RequestError(str(path), f"not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise RequestError(str(path), "nested too deeply, or in itself by an alias", "flatten it") from None
    if not isinstance(data, dict):
        raise RequestError(str(path), f"found {type(data).__name__} at the top", "a mapping of keys is needed")
    return Document(str(path), data, lines)


def _parse(path: Path, text: str) -> tuple[Any, dict[KeyPath, str]]:
    """The data of a YAML text, and where each key is. Raises RequestError for a key written twice or no text."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        written: dict[KeyPath, str] = {}
        for key_path, line, is_text in _keys(node, ()):
            place = f"{path}:{line}"
            where = f"{place}: {'.'.join(map(str, key_path))}"
            if key_path in written:
                raise RequestError(where, f"written twice, first at {written[key_path]}", "keep one of them")
            if not is_text:
                raise RequestError(where, "this key is no text to YAML", "quote it")
            written[key_path] = place
        data = loader.construct_document(node) if node else None
        # Construction has put the keys that `<<` brings into the nodes, before those that override them.
        lines = {key_path: f"{path}:{line}" for key_path, line, _ in _keys(node, ())}
    finally:
        loader.dispose()
    return _unshared(data), lines


def _unshared(value: Any) -> Any:
    """A copy in which YAML aliases are values of their own, so that overriding one leaves the others alone."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _keys(node: yaml.Node | None, path: KeyPath) -> Iterator[tuple[KeyPath, int, bool]]:
    """The path and line (from 1) of every mapping key and list item below a node, and whether the key is text."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, key.value if isinstance(key, yaml.ScalarNode) else "?")
            yield here, key.start_mark.line + 1, key.tag in _TEXT_KEYS
            yield from _keys(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = (*path, index)
            yield here, value.start_mark.line + 1, True
            yield from _keys(value, here)


_TEXT_KEYS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


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
        _forget_lines(base, here)
        base.lines.update({known: line for known, line in lines.items() if known[: len(here)] == here})


def _apply_override(document: Document, override: str) -> None:
    """Apply one `a.b=c`; the value is read as YAML, so 3, 1e-4, true, null and [1, 2] mean what they do in a file."""
    dotted, separator, text = override.partition("=")
    where = f"--set {override}"
    if not separator or not dotted:
        raise RequestError(where, "not of the form KEY=VALUE", "for example --set stages.grpo.engine.steps=20")
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError):
        raise RequestError(where, f"the value {text!r} is not YAML", "quote it, as in --set 'name=\"a: b\"'") from None
    keys = dotted.split(".")
    target: Any = document.data
    for depth, key in enumerate(keys[:-1], start=1):
        if key not in target:
            target[key] = {}
            document.lines[tuple(keys[:depth])] = "--set"
        if not isinstance(target[key], dict):
            raise RequestError(where, f"{key} is not a mapping, so it has no key below it")
        target = target[key]
    target[keys[-1]] = value
    _forget_lines(document, tuple(keys))
    document.lines[tuple(keys)] = "--set"


def _forget_lines(document: Document, path: KeyPath) -> None:
    """Drop the lines of a key that is replaced, and of all below it."""
    for known in [known for known in document.lines if known[: len(path)] == path]:
        del document.lines[known]
