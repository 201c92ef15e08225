"""Whether files are still what was written: archives by their checksums, a conversion's files by its receipt.

`verification` calls it. `.metadata` has no checksum of its own, so only a receipt can tell of a bit flipped in it.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from checkpoints_conversion.assembly import Assembly, Files
from checkpoints_conversion.card import CARD
from checkpoints_conversion.megatron import Megatron
from checkpoints_conversion.publishing import RECEIPT
from checkpoints_conversion.torch_dist import COMMON
from checkpoints_conversion.zip_check import DamageError, check_archive
from reasonforge import files as ground
from reasonforge.errors import RequestError


class Records:
    """The archives of a Megatron checkpoint, each checked once."""

    def __init__(self, checkpoint: Megatron, files: Files):
        self._path, self._files = checkpoint.place.weights, files
        self.without_checksums = 0
        """How many archives were saved without checksums: nothing can be said of their bits."""
        metadata = checkpoint.state.metadata
        found: dict[Path, dict[int, tuple[int, str]]] = defaultdict(dict)
        for tensor in metadata.tensors.values():
            for chunk in tensor.chunks:
                found[self._path / chunk.record.file][chunk.record.offset] = (chunk.record.length, tensor.key)
        self._used = set(metadata.objects)
        for key, record in metadata.objects.items():
            found[self._path / record.file][record.offset] = (record.length, key)
        self._records = found
        self._starts = {path: sorted(records) for path, records in found.items()}
        self._checked: set[tuple[Path, int]] = set()

    def check_of(self, tensor: Assembly) -> Iterator[str]:
        """What is wrong with the archives that hold a tensor."""
        for fragment in tensor.fragments:
            starts = self._starts[fragment.file]
            start = starts[bisect_right(starts, fragment.source_offset) - 1]
            self._used.add(self._records[fragment.file][start][1])
            yield from self._check(fragment.file, start)

    def check_others(self) -> Iterator[str]:
        """What is wrong with the other archives of these tensors (padding), of modules' states and the common state."""
        for path, records in list(self._records.items()):
            for start, (_, key) in records.items():
                if key in self._used:
                    yield from self._check(path, start)
        common = self._path / COMMON
        if common.is_file():
            self._records[common][0] = (common.stat().st_size, "")
            yield from self._check(common, 0)

    def _check(self, path: Path, start: int) -> Iterator[str]:
        if (path, start) in self._checked:
            return
        self._checked.add((path, start))
        length, key = self._records[path][start]
        try:
            if not check_archive(self._files.descriptor(path), start, length):
                self.without_checksums += 1
        except DamageError as damage:
            yield f"{path.name}{key and ': ' + key}: {damage}"


def check_receipt(path: Path, weights: Path) -> Iterator[str]:
    """What has changed since a conversion made a checkpoint, by the receipt in it; nothing where it has none.

    The card may change: people write in it. Where training has gone on from the checkpoint, the receipt says nothing.
    """
    for root in (path, path.parent):
        if not (root / RECEIPT).is_file():
            continue
        receipt = _read(root / RECEIPT)
        if not any((root / name).parent == weights for name in receipt["files"]):
            continue
        for name, size in receipt["files"].items():
            if Path(name).name == CARD:
                continue
            file = root / name
            if not file.is_file():
                yield f"{name}: missing, but the conversion wrote it"
            elif file.stat().st_size != size:
                yield f"{name}: {file.stat().st_size} bytes, but the conversion wrote {size}"
            elif name in receipt["sha256"] and ground.sha256_file(file) != receipt["sha256"][name]:
                yield f"{name}: its SHA-256 is not that of what the conversion wrote"
        return


def _read(path: Path) -> dict[str, Any]:
    """A receipt; its key is the hash of what it says the result depends on."""
    receipt = ground.read_json(path)
    try:
        beside = {"format", "key", "made_by", "files", "sha256"}
        identity = {key: value for key, value in receipt.items() if key not in beside}
        sound = receipt["key"] == ground.sha256_text(ground.canonical_json(identity))
        sound &= all(type(size) is int for size in receipt["files"].values()) and isinstance(receipt["sha256"], dict)
    except (AttributeError, KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise RequestError(
            str(path), "damaged, or not a conversion's receipt", "delete it, or get the checkpoint again"
        )
    return dict(receipt)
