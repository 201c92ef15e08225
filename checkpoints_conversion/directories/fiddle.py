"""Objects written down as Fiddle configurations, without Fiddle and without importing what they name.

NeMo 2 keeps a model so: as the call that makes it, in `io.json` (Fiddle's own JSON, which NeMo builds the model from)
and in `model.yaml` (for people and exporters). `nemo` is the only caller.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

_CONFIG = "fiddle._src.config"


@dataclass(frozen=True)
class Symbol:
    """A class, function or constant, by the module that it lies in and its name there."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """A class or function with arguments: Fiddle's `Config`."""

    target: Symbol
    arguments: Mapping[str, Any]
    """None, bool, int, float, str, Symbol, Call, and dicts of these."""


def render_json(root: Call) -> str:
    """The JSON that `fiddle.experimental.serialization.load_json` reads.

    Each object has the paths that lead to it: by them NeMo's `load_context` finds a part such as "model.tokenizer".
    """
    objects: dict[str, Any] = {}
    reference = _value(root, "<root>", objects)
    return json.dumps({"root": reference, "objects": objects, "version": "0.0.1"}, indent=1) + "\n"


def _value(value: Any, path: str, objects: dict[str, Any]) -> dict[str, Any]:
    """A value as it stands in its owner; calls and dicts go into `objects` under their path."""
    if isinstance(value, Symbol):
        return {**_symbol(value), "paths": [path]}
    if not isinstance(value, Call | dict):
        return {"type": "leaf", "value": value, "paths": [path]}
    if isinstance(value, Call):
        inside = {f"Attr(name='{name}')": (f"{path}.{name}", item) for name, item in value.arguments.items()}
        kind, metadata = Symbol(_CONFIG, "Config"), _call_metadata(value)
    else:
        inside = {f"Key(key='{name}')": (f"{path}['{name}']", item) for name, item in value.items()}
        kind, metadata = Symbol("builtins", "dict"), _tuple(value)
    items = [[element, _value(item, place, objects)] for element, (place, item) in inside.items()]
    objects[path] = {"type": _symbol(kind), "items": items, "metadata": metadata, "paths": [path]}
    return {"type": "ref", "key": path}


def _symbol(symbol: Symbol) -> dict[str, Any]:
    return {"type": "pyref", "module": symbol.module, "name": symbol.name}


def _call_metadata(call: Call) -> dict[str, Any]:
    kind = _symbol(Symbol(_CONFIG, "BuildableTraverserMetadata"))
    nothing = {"type": _symbol(Symbol("builtins", "dict")), "items": [], "metadata": _tuple(())}
    fields = {
        "fn_or_cls": _symbol(call.target),
        "argument_names": _tuple(call.arguments),
        "argument_tags": nothing,
        "argument_history": nothing,
    }
    return {"type": kind, "items": [[f"Attr(name='{name}')", item] for name, item in fields.items()], "metadata": kind}


def _tuple(names: Iterable[str]) -> dict[str, Any]:
    items = [[f"Index(index={number})", name] for number, name in enumerate(names)]
    return {"type": _symbol(Symbol("builtins", "tuple")), "items": items, "metadata": None}


def render_yaml(root: Call) -> str:
    """The YAML that NeMo writes beside the JSON: `_target_` names what is called."""
    return yaml.safe_dump(_plain(root))


def _plain(value: Any) -> Any:
    if isinstance(value, Symbol):
        return {"_target_": f"{value.module}.{value.name}", "_call_": False}
    if isinstance(value, Call):
        arguments = {name: _plain(item) for name, item in value.arguments.items()}
        return {"_target_": f"{value.target.module}.{value.target.name}", **arguments}
    return value
