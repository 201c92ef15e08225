"""Stand-ins for packages that cannot be imported without a GPU, for tests only: Transformer Engine, triton."""

import importlib.abc
import importlib.machinery
import types
from typing import Any


class _Anything(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _anything(name)

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__


def _anything(name: str) -> Any:
    return _Anything(name, (), {"__init__": lambda *_, **__: None})


class _Module(types.ModuleType):
    __version__ = "2.10.0"
    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, _anything(name))
        return getattr(self, name)


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Packages that import as modules of which every name is a class that takes anything."""

    def __init__(self, *packages: str):
        self.packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        wanted = name.partition(".")[0] in self.packages
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if wanted else None

    def create_module(self, spec: Any) -> Any:
        return _Module(spec.name)

    def exec_module(self, module: Any) -> None:
        pass
