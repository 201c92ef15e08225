"""megatron-core's own FP8 context with a stand-in for Transformer Engine, which cannot be imported without CUDA:

    fp8_side.py JOB.json ANSWER.json

The job gives settings of megatron-core's TransformerConfig by name; the answer tells for each, and for some layers,
what Transformer Engine would be given: the recipe's class, the arguments that it has, those that it would drop without
a word, and the arguments of `fp8_autocast` and `fp8_model_init`. Transformer Engine itself does nothing here.
"""

import enum
import importlib
import importlib.abc
import importlib.machinery
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

VERSION = "2.9.0"
FIELDS = {
    "DelayedScaling": {
        "margin", "fp8_format", "amax_history_len", "amax_compute_algo", "scaling_factor_compute_algo", "reduce_amax",
        "fp8_dpa", "fp8_mha",
    },
    "Float8CurrentScaling": {
        "use_power_2_scales", "fp8_format", "fp8_quant_fwd_inp", "fp8_quant_fwd_weight", "fp8_quant_bwd_grad",
        "fp8_gemm_fprop", "fp8_gemm_dgrad", "fp8_gemm_wgrad", "fp8_dpa", "fp8_mha",
    },
    "MXFP8BlockScaling": {"margin", "fp8_format", "fp8_dpa", "fp8_mha"},
    "Float8BlockScaling": {
        "use_f32_scales", "fp8_format", "fp8_quant_fwd_inp", "fp8_quant_fwd_weight", "fp8_quant_bwd_grad",
        "x_block_scaling_dim", "w_block_scaling_dim", "grad_block_scaling_dim", "fp8_gemm_fprop", "fp8_gemm_dgrad",
        "fp8_gemm_wgrad", "fp8_dpa", "fp8_mha",
    },
}  # fmt: skip
"""The fields of the recipes in transformer_engine/common/recipe/__init__.py of 2.9. They are pydantic dataclasses: an
argument that is not one of these is dropped."""


class Format(enum.Enum):
    """As Transformer Engine's."""

    E4M3 = "e4m3"
    E5M2 = "e5m2"
    HYBRID = "hybrid"


class Recipe:
    """Remembers what it was given."""

    def __init__(self, **arguments: Any):
        known = next(FIELDS[base.__name__] for base in type(self).__mro__ if base.__name__ in FIELDS)
        self.taken = {key: told(value) for key, value in arguments.items() if key in known}
        self.dropped = sorted(arguments.keys() - known)


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
    """Every module below transformer_engine."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] != "transformer_engine":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> ModuleType:
        module = Anything(spec.name)
        if spec.name == "transformer_engine":
            module.__version__ = VERSION  # type: ignore[attr-defined]
        elif spec.name == "transformer_engine.pytorch":
            module.fp8_autocast, module.fp8_model_init = fp8_autocast, fp8_model_init  # type: ignore[attr-defined]
        elif spec.name == "transformer_engine.common.recipe":
            module.Format = Format  # type: ignore[attr-defined]
            for recipe in FIELDS:
                setattr(module, recipe, type(recipe, (Recipe,), {}))
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def describe(context: Any) -> Any:
    """None for a layer in bf16."""
    if not isinstance(context, Context):
        return None
    recipe = context.arguments.pop("recipe")
    base = next(base.__name__ for base in type(recipe).__mro__ if base.__name__ in FIELDS)
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
