"""Machine code of small functions, by numba where it is there: the kernels of `hashing`, `minhash`, `decontamination`.

Those modules call it, and do the same with numpy where it gives nothing.
"""

import functools
import importlib
import types
from collections.abc import Callable
from typing import Any


@functools.cache
def compiled(kernel: Callable[..., Any]) -> Callable[..., Any] | None:
    """The kernel as machine code, which numba keeps on the disk where a directory can be written; None without numba.

    A kernel is a function of contiguous arrays and integers, and `np` is numpy in it without an import. It may call
    other kernels of its own file only: numba looks at no other file to see whether what it kept is out of date. uint64
    goes together with uint64, as Python's own integers would make floating-point numbers of it. Each combination of
    types is compiled for itself, in seconds, and an array that cannot be written to is a type of its own.
    """
    try:
        numba: Any = importlib.import_module("numba")
    except ImportError:
        return None
    # numba would import other packages' extensions, which takes longer than all of ours (awkward's, that gigatoken
    # brings). No kernel has their arrays; who needs one in this process calls that extension's own `register()`.
    extensions: Any = importlib.import_module("numba.core.entrypoints")
    extensions._already_initialized = True
    scope = {**kernel.__globals__, "np": importlib.import_module("numpy")}
    for name in kernel.__code__.co_names:
        one = scope.get(name)
        if isinstance(one, types.FunctionType) and one.__module__ == kernel.__module__:
            scope[name] = compiled(one)
    function = types.FunctionType(kernel.__code__, scope)
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # no directory can be written
        return numba.njit(**options)(function)  # type: ignore[no-any-return]
