"""Whether checkpoints are equal, bit by bit or within a tolerance, and whether one is sound: `convert verify`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoints_conversion.assembly import Assembly, Files, blocks
from checkpoints_conversion.contents import Contents, is_huggingface, open_contents
from checkpoints_conversion.floats import count_bad, decode
from checkpoints_conversion.integrity import Records, check_receipt
from reasonforge.progress import Progress

SHOWN = 10
"""How many differences are named."""


@dataclass
class Verdict:
    """What was found; `good` is the answer."""

    tensors: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)
    """The first of them, a line each."""
    bad: int = 0
    """How many problems there are."""
    largest: float = 0.0
    """Largest absolute difference of two numbers, where a tolerance was asked for."""
    nan: int = 0
    infinite: int = 0
    without_checksums: int = 0
    """Archives that were saved without checksums, so that flipped bits in them cannot be found."""

    @property
    def good(self) -> bool:
        """Whether nothing was wrong."""
        return self.bad == 0

    def blame(self, problem: str) -> None:
        """Count a problem, and keep it where it is one of the first."""
        self.bad += 1
        if len(self.problems) < SHOWN:
            self.problems.append(problem)

    def json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"good": self.good, **{name: getattr(self, name) for name in self.__dataclass_fields__}}


def check(path: Path, reference: Path | None, progress: Callable[[int], Progress]) -> Verdict:
    """Read every weight of a checkpoint: index, offsets, sizes and shapes are checked, NaN and infinities counted.

    The archives of a Megatron checkpoint are checked by their checksums, and a conversion's small files by its receipt.
    safetensors files have no checksums.
    Raises RequestError where its index, its files and its configuration disagree.
    """
    contents, verdict = open_contents(path, reference), Verdict()
    checkpoint = contents.checkpoint
    for problem in check_receipt(path, checkpoint.place.weights if checkpoint else path):
        verdict.blame(problem)
    with progress(sum(item.bytes for item in contents.tensors.values())) as counter, Files() as files:
        records = Records(checkpoint, files) if checkpoint else None
        for name, item in contents.tensors.items():
            for problem in records.check_of(item) if records else ():
                verdict.blame(f"{problem} (in {name})")
            _count_bad(name, item, files, verdict)
            counter.advance(item.bytes)
        if records:
            for problem in records.check_others():
                verdict.blame(problem)
            verdict.without_checksums = records.without_checksums
    return verdict


def _count_bad(name: str, item: Assembly, files: Files, verdict: Verdict) -> None:
    nan = infinite = 0
    for _, block in blocks(item, files):
        found = count_bad(block, item.dtype)
        nan, infinite = nan + found[0], infinite + found[1]
    if nan or infinite:
        verdict.blame(f"{name}: {nan} NaN, {infinite} infinite")
    verdict.nan, verdict.infinite = verdict.nan + nan, verdict.infinite + infinite
    verdict.tensors, verdict.bytes = verdict.tensors + 1, verdict.bytes + item.bytes


def compare(
    one: Path, other: Path, tolerance: float | None, reference: Path | None, progress: Callable[[int], Progress]
) -> Verdict:
    """Compare two checkpoints of any format, tensor by tensor.

    Args:
        tolerance: largest absolute difference that passes; None compares bits.
        reference: what a Megatron checkpoint is of; where the other one is a Hugging Face model, that says it.
    """
    first = open_contents(one, reference or (other if is_huggingface(other) else None))
    second = open_contents(other, reference or (one if is_huggingface(one) else None))
    verdict = Verdict()
    for name in sorted(set(first.tensors) ^ set(second.tensors)):
        if not _is_tied_copy(name, first, second):
            verdict.blame(f"{name}: only in {one if name in first.tensors else other}")
    shared = [name for name in first.tensors if name in second.tensors]
    with progress(sum(first.tensors[name].bytes for name in shared)) as counter, Files() as files:
        for name in shared:
            _compare_tensor(first.tensors[name], second.tensors[name], tolerance, files, verdict)
            verdict.tensors, verdict.bytes = verdict.tensors + 1, verdict.bytes + first.tensors[name].bytes
            counter.advance(first.tensors[name].bytes)
    return verdict


def _is_tied_copy(name: str, first: Contents, second: Contents) -> bool:
    return name.endswith("rotary_emb.inv_freq") or (
        name == "lm_head.weight" and first.model.spec.tied and second.model.spec.tied
    )


def _compare_tensor(one: Assembly, other: Assembly, tolerance: float | None, files: Files, verdict: Verdict) -> None:
    if one.shape != other.shape or (tolerance is None and one.dtype != other.dtype):
        verdict.blame(f"{one.label}: {one.dtype} {list(one.shape)} against {other.dtype} {list(other.shape)}")
        return
    if one.dtype != other.dtype:
        verdict.blame(f"{one.label}: {one.dtype} against {other.dtype}; compare checkpoints of one type")
        return
    different, largest = 0, 0.0
    for (begin, left), (_, right) in zip(
        blocks(one, files, by_rows=True), blocks(other, files, by_rows=True), strict=True
    ):
        if left == right:
            continue
        if tolerance is None:
            verdict.blame(f"{one.label}: the bits differ from byte {begin + _first_difference(left, right)} on")
            return
        above, most = _distance(left, right, one.dtype, tolerance)
        different, largest = different + above, max(largest, most)
    verdict.largest = max(verdict.largest, largest)
    if different:
        verdict.blame(f"{one.label}: {different} numbers differ by more than {tolerance:g}, the most by {largest:g}")


def _distance(left: memoryview, right: memoryview, dtype: str, tolerance: float) -> tuple[int, float]:
    """How many numbers differ by more than the tolerance, and the largest difference. Equal bits never differ."""
    import numpy as np

    one, other = decode(left, dtype).astype("<f8"), decode(right, dtype).astype("<f8")
    with np.errstate(invalid="ignore"):
        distance = np.abs(one - other)
    bits = f"<u{len(left) // len(one)}"
    differ = np.frombuffer(left, bits) != np.frombuffer(right, bits)
    above = differ & ~(distance <= tolerance)
    return int(np.count_nonzero(above)), float(np.max(distance[differ & ~np.isnan(distance)], initial=0.0))


def _first_difference(left: memoryview, right: memoryview) -> int:
    return next((number for number, (one, other) in enumerate(zip(left, right, strict=False)) if one != other), 0)
