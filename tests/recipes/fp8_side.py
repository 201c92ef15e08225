"""megatron-core's own FP8 context over Transformer Engine's own recipes:

    fp8_side.py JOB.json ANSWER.json

The job gives settings of megatron-core's TransformerConfig by name; the answer tells for each, and for some layers,
what Transformer Engine is given: the recipe's class, the arguments that it takes, as it holds them, those that it
drops without a word, and the arguments of `fp8_autocast` and `fp8_model_init`. The recipes are Transformer Engine's
own, which check what they are given; `make megatron` puts its Python into a directory of its own. All else of it needs
CUDA to be imported: a stand-in takes its place.
"""

import enum
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

VERSION = "2.9.0"
RECIPES = "transformer_engine.common.recipe"
INSTALLED = Path(__file__).parents[2] / f".megatron/transformer-engine-{VERSION}"
KINDS = ("DelayedScaling", "Float8CurrentScaling", "MXFP8BlockScaling", "Float8BlockScaling")


def note_arguments(recipe: Any) -> None:
    """Let a recipe remember what it was given: it is a pydantic dataclass, which drops what is no field of it."""
    make = recipe.__init__

    def noting(self: Any, **arguments: Any) -> None:
        make(self, **arguments)
        known = {field.name for field in fields(recipe)}
        self.__dict__["taken"] = {key: told(getattr(self, key)) for key in arguments if key in known}
        self.__dict__["dropped"] = sorted(arguments.keys() - known)

    recipe.__init__ = noting


def told(value: Any) -> Any:
    return value.name if isinstance(value, enum.Enum) else value


class Context(nullcontext):  # type: ignore[type-arg]
    """Remembers which function made it, and of what."""

    def __init__(self, function: str, **arguments: Any):
        super().__init__()
        self.function, self.arguments = function, arguments


def fp8_autocast(enabled: bool = True, fp8_recipe: Any = None, fp8_group: Any = None) -> Context:
    return Context("fp8_autocast", enabled=enabled, recipe=fp8_recipe, group=fp8_group)


def fp8_model_init(enabled: bool = True, recipe: Any = None, preserve_high_precision_init_val: bool = False) -> Context:
    return Context("fp8_model_init", enabled=enabled, recipe=recipe, preserve=preserve_high_precision_init_val)


class Anything(ModuleType):
    """A module that has a class of every name in capitals, and a module of every other."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.strip("_")[:1].islower():
            return importlib.import_module(f"{self.__name__}.{name}")
        made = type(name, (), {"apply": None})
        setattr(self, name, made)
        return made


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Every module below transformer_engine but the recipes, which are the real ones."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name == RECIPES:
            return importlib.util.spec_from_file_location(name, INSTALLED / RECIPES.replace(".", "/") / "__init__.py")
        if name.partition(".")[0] != "transformer_engine":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> ModuleType:
        module = Anything(spec.name)
        if spec.name == "transformer_engine":
            module.__version__ = VERSION  # type: ignore[attr-defined]
        elif spec.name == "transformer_engine.pytorch":
            module.fp8_autocast, module.fp8_model_init = fp8_autocast, fp8_model_init  # type: ignore[attr-defined]
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def describe(context: Any) -> Any:
    """None for a layer in bf16."""
    if not isinstance(context, Context):
        return None
    recipe = context.arguments.pop("recipe")
    base = next(base.__name__ for base in type(recipe).__mro__ if base.__name__ in KINDS)
    return {
        "function": context.function,
        "arguments": context.arguments,
        "recipe": base,
        "taken": recipe.taken,
        "dropped": recipe.dropped,
    }


def main() -> None:
    sys.meta_path.insert(0, Finder())
    import torch
    import transformer_engine.common.recipe
    import transformer_engine.pytorch  # noqa: F401

    for kind in KINDS:
        note_arguments(getattr(sys.modules[RECIPES], kind))
    torch.cuda.current_device = lambda: 0
    from megatron.core.fp8_utils import get_fp8_context
    from megatron.core.transformer.transformer_config import TransformerConfig

    found = {}
    for name, settings in json.loads(Path(sys.argv[1]).read_text()).items():
        config = TransformerConfig(num_layers=8, hidden_size=64, num_attention_heads=4, **settings)
        layers = {str(layer): describe(get_fp8_context(config, layer)) for layer in range(8)}
        found[name] = {"layers": layers, "init": describe(get_fp8_context(config, 4, is_init=True))}
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
