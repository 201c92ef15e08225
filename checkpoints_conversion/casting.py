"""Weights in another type, block by block: what `--dtype` of an import or export does. numpy is loaded when it does."""

from collections.abc import Callable
from dataclasses import replace

from checkpoints_conversion.assembly import Assembly
from checkpoints_conversion.copying import Write
from checkpoints_conversion.dtypes import FROM_TORCH, WEIGHTS
from checkpoints_conversion.floats import decode, encode, finite
from reasonforge.errors import RequestError


def target_type(dtype: str | None) -> str | None:
    """safetensors' name of a type that is asked for by torch's; None for none. Raises RequestError on another."""
    if dtype is not None and dtype not in FROM_TORCH:
        raise RequestError("--dtype", f"found {dtype!r}", f"{', '.join(WEIGHTS.values())} are possible")
    return FROM_TORCH[dtype] if dtype is not None else None


def retyped(assembly: Assembly, dtype: str | None) -> Assembly:
    """A tensor as it will be in the result: the same shape, of another type. Its fragments are still the source's."""
    return assembly if dtype is None else replace(assembly, dtype=dtype)


def cast(write: Write, source: str) -> Write:
    """The write of a tensor whose fragments are of type `source`, rounded to the nearest, ties to even."""
    target = write.assembly.dtype
    if source == target:
        return write
    return replace(
        write,
        assembly=replace(write.assembly, dtype=source),
        dtype=target,
        combine=_casting(write.assembly.label, source, target),
    )


def _casting(label: str, source: str, target: str) -> Callable[[list[memoryview]], bytes]:
    def convert(parts: list[memoryview]) -> bytes:
        numbers = decode(parts[0], source)
        data = encode(numbers, target)
        lost = finite(numbers) & ~finite(decode(memoryview(data), target))
        if lost.any():
            raise RequestError(
                label, f"it holds {numbers[lost][0]:g}, which {WEIGHTS[target]} cannot hold", "choose another --dtype"
            )
        return data

    return convert
