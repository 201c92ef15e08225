"""Where a Megatron tensor's rows and columns lie in files, and how they meet the rows of Hugging Face tensors.

Pure: `importing` asks what a chunk is made of, `exporting` what a Hugging Face tensor is made of. Nothing is read.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoints_conversion.assembly import Assembly, Fragment
from checkpoints_conversion.dtypes import ITEM_BYTES
from checkpoints_conversion.families.table import MegatronTensor
from checkpoints_conversion.safetensors import Tensor
from reasonforge.errors import RequestError


@dataclass(frozen=True, slots=True)
class Plane:
    """A rectangle of a matrix (of a vector: `columns` is 1), stored row by row without gaps."""

    file: Path
    offset: int
    row: int
    rows: int
    column: int
    columns: int


@dataclass(frozen=True)
class Stored:
    """A Megatron tensor in a checkpoint: the planes that tile it."""

    tensor: MegatronTensor
    dtype: str
    rows: int
    """As stored: training may have padded the vocabulary further."""
    planes: tuple[Plane, ...]


def import_chunks(tensor: MegatronTensor, source: Callable[[str], Tensor]) -> list[tuple[int, Assembly]]:
    """The chunks of a Megatron tensor as (first row, what it is made of).

    Args:
        source: the HF tensor of a name; raises RequestError where there is none.
    Raises RequestError where an HF tensor has another shape than its family's map says, or the types are mixed.
    """
    found = {piece.source: source(piece.source) for piece in tensor.pieces}
    expected: dict[str, int] = defaultdict(int)
    for piece in tensor.pieces:
        expected[piece.source] += piece.rows
    for name, rows in expected.items():
        shape: tuple[int, ...] = (rows, tensor.columns) if tensor.columns else (rows,)
        if found[name].shape != shape:
            raise RequestError(
                str(found[name].file), f"{name} has shape {list(found[name].shape)}, but config.json says {list(shape)}"
            )
    dtype = _one_dtype(tensor.label, {name: item.dtype for name, item in found.items()}, found)
    width = max(tensor.columns, 1) * ITEM_BYTES[dtype]
    size = tensor.rows // tensor.chunks
    chunks = []
    for first in range(0, tensor.rows, size):
        fragments = []
        for piece in tensor.pieces:
            low, high = max(piece.row, first), min(piece.row + piece.rows, first + size)
            if low < high:
                offset = found[piece.source].offset + (piece.source_row + low - piece.row) * width
                length = (high - low) * width
                place = (low - first) * width
                fragments.append(Fragment(found[piece.source].file, offset, place, 1, length, length, length))
        label = f"{tensor.label} rows {first}-{first + size}" if tensor.chunks > 1 else tensor.label
        chunks.append(
            (
                first,
                Assembly(
                    label, dtype, (size, *tensor.shape[1:]), tuple(sorted(fragments, key=lambda item: item.offset))
                ),
            )
        )
    return chunks


def _one_dtype(label: str, dtypes: dict[str, str], found: dict[str, Tensor]) -> str:
    first, *others = dtypes.values()
    if any(other != first for other in others):
        told = ", ".join(f"{name} is {dtype}" for name, dtype in dtypes.items())
        raise RequestError(str(next(iter(found.values())).file), f"{label} would mix types: {told}")
    return first


def export_assemblies(stored: Iterable[Stored]) -> dict[str, Assembly]:
    """What each HF tensor is made of, by name, in the order in which the names come up.

    Raises RequestError where planes do not tile their tensor.
    """
    fragments: dict[str, list[Fragment]] = defaultdict(list)
    shapes: dict[str, tuple[str, int, int]] = {}
    for item in stored:
        _check_tiling(item)
        bytes_ = ITEM_BYTES[item.dtype]
        full = max(item.tensor.columns, 1) * bytes_
        for piece in item.tensor.pieces:
            before = shapes[piece.source][2] if piece.source in shapes else 0
            shapes[piece.source] = (item.dtype, item.tensor.columns, before + piece.rows)
            for plane in item.planes:
                low, high = max(piece.row, plane.row), min(piece.row + piece.rows, plane.row + plane.rows)
                if low >= high:
                    continue
                width = plane.columns * bytes_
                source = plane.offset + (low - plane.row) * width
                place = (piece.source_row + low - piece.row) * full + plane.column * bytes_
                run = (high - low) * width
                fragments[piece.source].append(
                    Fragment(plane.file, source, place, 1, run, run, run)
                    if width == full
                    else Fragment(plane.file, source, place, high - low, width, width, full)
                )
    return {
        name: Assembly(
            name,
            dtype,
            (rows, columns) if columns else (rows,),
            tuple(sorted(fragments[name], key=lambda item: item.offset)),
        )
        for name, (dtype, columns, rows) in shapes.items()
    }


def _check_tiling(item: Stored) -> None:
    """Raise unless the planes cover the tensor exactly once."""
    columns = max(item.tensor.columns, 1)
    inside = all(
        plane.row + plane.rows <= item.rows and plane.column + plane.columns <= columns for plane in item.planes
    )
    area = sum(plane.rows * plane.columns for plane in item.planes)
    if not inside or area != item.rows * columns or _overlap(item.planes):
        where = str(item.planes[0].file.parent) if item.planes else item.tensor.label
        raise RequestError(where, f"the chunks of {item.tensor.label} do not tile it", "the checkpoint is not whole")


def _overlap(planes: Sequence[Plane]) -> bool:
    ordered = sorted((plane for plane in planes if plane.rows and plane.columns), key=lambda plane: plane.row)
    for number, one in enumerate(ordered):
        for later in range(number + 1, len(ordered)):
            other = ordered[later]
            if other.row >= one.row + one.rows:
                break
            if one.column < other.column + other.columns and other.column < one.column + one.columns:
                return True
    return False
