"""Writes the `.bin` and `.idx` files that Megatron-LM trains on, byte for byte as its tools/preprocess_data.py does.

The command `data index` calls it. The file is cut into ranges of bytes that
survive a kill, and the two files are put together from them in order, so neither kills nor workers change a byte.

Source: Megatron-LM, tools/preprocess_data.py and megatron/core/datasets/indexed_dataset.py.
"""

import os
import shutil
import struct
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from data_prep.shards import map_shards
from data_prep.sources.documents import BadLine, Text, document_spans, read_documents, refuse, sample
from data_prep.sources.lines import Span
from data_prep.tokenization.encoder import TextEncoder
from reasonforge.errors import RequestError
from reasonforge.files import canonical_json, published, read_jsonl, sha256_file, sha256_text, write_jsonl
from reasonforge.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Row: TypeAlias = dict[str, Any]

SHARD_BYTES = 64 << 20
"""Bytes of jsonl between two saves."""
VERSION = 1
"""Of what a shard holds: with another, finished shards are not taken up."""
UINT16_BELOW = 65_500
"""A vocabulary of fewer entries is written as uint16, others as int32 (`DType.optimal_dtype`)."""

_MAGIC = b"MMIDIDX\x00\x00"
_DTYPES = {"uint16": 8, "int32": 4}
_PARTS = ("bin", "lengths", "documents")
_COPY_BYTES = 4 << 20


@dataclass(frozen=True)
class Plan:
    """What decides the bytes.

    Args:
        source: a jsonl file.
        model: a Hugging Face model directory with tokenizer.json.
        column: the key of a row's text, or of its list of sentences, which become one sequence each.
        append_eod: end each document that has tokens with the tokenizer's end-of-sequence token.
        skip_bad: leave out lines that are no document, and list them, instead of refusing the file.
        shard_bytes: bytes of jsonl between two saves; the output does not depend on it.
    """

    source: Path
    model: Path
    column: str = "text"
    append_eod: bool = False
    skip_bad: bool = False
    shard_bytes: int = SHARD_BYTES

    def key(self) -> str:
        """A name for the shards of this plan, on this content of its files as far as size and time show it."""
        state = self.source.stat()
        return sha256_text(
            canonical_json(
                {
                    **{name: str(value) for name, value in asdict(self).items()},
                    "version": VERSION,
                    "source_state": [state.st_size, state.st_mtime_ns],
                    "tokenizer": [_hash(self.model / name) for name in ("tokenizer.json", "tokenizer_config.json")],
                }
            )
        )[:16]


def write_indexed(plan: Plan, prefix: Path, *, scratch: Path, workers: int, progress: Progress) -> Row:
    """Tokenize a jsonl file into `PREFIX_COLUMN_document.bin` and `.idx`; returns the counts.

    A row without text becomes a document without sequences. Where `skip_bad` is set, the bad lines are listed in
    `PREFIX_COLUMN_document.rejected.jsonl` with their number and reason. The `.idx` file is published last.

    Args:
        prefix: Megatron-LM's --output-prefix.
        scratch: keeps finished shards until the caller removes it; other plans may use the same one.
        workers: processes.
        progress: counts shards; how many there are is set here.

    Raises RequestError for a bad line, naming it, for a tokenizer that cannot be used, and where nothing is left.
    """
    ranges = document_spans(plan.source, plan.shard_bytes)
    _encoder(plan)  # refused before any work
    scratch = scratch / plan.key()
    progress.total, progress.unit = len(ranges), "shards"
    shards = map_shards(
        ranges, partial(_shard, plan, scratch, workers > 1), shard_size=1, scratch=scratch, workers=workers,
        progress=progress,
    )  # fmt: skip
    receipts = [next(read_jsonl(path)) for path in shards]
    dtype = receipts[0]["dtype"]
    summary = {name: sum(one[name] for one in receipts) for name in ("documents", "empty", "sequences", "tokens")}
    rejected = list(_numbered(receipts))
    if not summary["documents"]:
        raise RequestError(str(plan.source), f"none of its lines is a document ({len(rejected)} are bad)")
    target = prefix.with_name(f"{prefix.name}_{plan.column}_document")
    target.parent.mkdir(parents=True, exist_ok=True)
    if plan.skip_bad:
        write_jsonl(target.with_name(target.name + ".rejected.jsonl"), rejected)
    parts = [scratch / f"part-{index:06d}" for index in range(len(ranges))]
    with published(target.with_name(target.name + ".bin")) as handle:
        for part in parts:
            _append(handle, part.with_suffix(".bin"))
    with published(target.with_name(target.name + ".idx")) as handle:
        _write_index(handle, parts, dtype, summary)
    return {**summary, "rejected": len(rejected), "dtype": dtype}


def _shard(plan: Plan, scratch: Path, in_worker: bool, index: int, ranges: "list[Span]") -> list[Row]:
    """Tokenize one range into three files in scratch, then say what is in them."""
    if in_worker:
        os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    (span,) = ranges
    encoder = _encoder(plan)
    assemble = _Assembly(encoder, encoder.named_token("eos_token") if plan.append_eod else None, plan)
    rejected: list[Row] = []

    def on_bad(bad: BadLine) -> None:
        if not plan.skip_bad:
            raise refuse(plan.source, span, bad)
        rejected.append({"line": bad.number, "reason": bad.problem})

    lines = 0
    part = scratch / f"part-{index:06d}"
    with published(part.with_suffix(".bin"), durable=False) as handle:
        for chunk in read_documents(plan.source, span, plan.column, on_bad):
            handle.write(assemble.add(chunk.documents).data)
            lines += chunk.lines
    for name, numbers in (("lengths", assemble.lengths), ("documents", assemble.per_document)):
        with published(part.with_suffix(f".{name}"), durable=False) as handle:
            numbers.tofile(handle)
    return [
        {
            "documents": len(assemble.per_document),
            "empty": assemble.per_document.count(0),
            "sequences": len(assemble.lengths),
            "tokens": sum(assemble.lengths),
            "dtype": assemble.dtype,
            "lines": lines,
            "rejected": rejected,
        }
    ]


class _Assembly:
    """Documents to a run of tokens, with the length of each sequence and how many sequences each document has."""

    def __init__(self, encoder: TextEncoder, eod: int | None, plan: Plan) -> None:
        import numpy as np

        self.dtype = "uint16" if encoder.vocabulary < UINT16_BELOW else "int32"
        self.lengths, self.per_document = array("i"), array("i")
        if self.dtype == "uint16" and encoder.highest_id >= 1 << 16:
            raise RequestError(
                str(plan.model / "tokenizer.json"),
                f"token {encoder.highest_id} does not fit in the uint16 of fewer than {UINT16_BELOW} entries",
            )
        self._encoder = encoder
        self._eod = None if eod is None else np.array([eod], np.uint32)

    def add(self, documents: list[Text]) -> "NDArray[np.integer[Any]]":
        """The tokens of these documents, (tokens,), in the type that is written."""
        import numpy as np

        texts = [text for one in documents for text in ([one] if isinstance(one, str) else one)]
        encoded = iter(self._encoder.encode(texts, special_tokens=True))
        pieces = [np.empty(0, np.uint32)]
        for document in documents:
            count = 1 if isinstance(document, str) else len(document)
            sequences = [ids for ids in islice(encoded, count) if len(ids)]
            lengths = [len(ids) for ids in sequences]
            pieces += sequences
            if lengths and self._eod is not None:
                pieces.append(self._eod)
                lengths[-1] += 1
            self.lengths.extend(lengths)
            self.per_document.append(len(lengths))
        return np.concatenate(pieces, dtype=self.dtype, casting="unsafe")


def _write_index(handle: BinaryIO, parts: list[Path], dtype: str, summary: Row) -> None:
    """Header, int32 lengths, int64 byte offsets and int64 document boundaries; one shard's in memory at a time."""
    import numpy as np

    item = np.dtype(dtype).itemsize
    handle.write(_MAGIC + struct.pack("<QBQQ", 1, _DTYPES[dtype], summary["sequences"], summary["documents"] + 1))
    for part in parts:
        _append(handle, part.with_suffix(".lengths"))
    offset = 0
    for part in parts:
        lengths = np.fromfile(part.with_suffix(".lengths"), "<i4").astype("<i8")
        ends = offset + np.cumsum(lengths) * item
        handle.write((ends - lengths * item).data)
        offset = int(ends[-1]) if len(ends) else offset
    boundary = 0
    handle.write(struct.pack("<q", boundary))
    for part in parts:
        ends = boundary + np.cumsum(np.fromfile(part.with_suffix(".documents"), "<i4").astype("<i8"))
        handle.write(ends.data)
        boundary = int(ends[-1]) if len(ends) else boundary


def _numbered(receipts: list[Row]) -> Iterator[Row]:
    """The bad lines of all shards, numbered as in the file."""
    before = 0
    for one in receipts:
        for bad in one["rejected"]:
            yield {**bad, "line": before + bad["line"]}
        before += one["lines"]


def _append(handle: BinaryIO, path: Path) -> None:
    with open(path, "rb") as part:
        shutil.copyfileobj(part, handle, _COPY_BYTES)


def _encoder(plan: Plan) -> TextEncoder:
    return _cached_encoder(plan.model, plan.source, plan.column, _hash(plan.model / "tokenizer.json"))


@lru_cache(maxsize=1)
def _cached_encoder(model: Path, source: Path, column: str, _tokenizer_sha256: str) -> TextEncoder:
    """The encoder, tried on the first texts; one for all shards of a process."""
    return TextEncoder(model, sample(source, column))


def _hash(path: Path) -> str:
    return sha256_file(path) if path.is_file() else ""
