"""Tokenization: curated rows become token ids with a mask over the completion, in a parquet file.

The stage `tokenize` and the training of a base model call it. Rows are cut into fixed shards that survive a kill,
and the parquet file is written from them in order, so neither kills nor workers change a byte.
"""

import json
import os
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from data_prep.chat_tokenizer import ChatTokenizer, Tokenized
from data_prep.shards import map_shards
from reasonforge.errors import StageError
from reasonforge.files import fsync_path, jsonl_line, read_jsonl, write_json
from reasonforge.progress import Progress

SHARD_ROWS = 1000
"""Rows tokenized between two saves."""
BATCH_ROWS = 64
"""Rows encoded at once: the tokenizer's own threads share them."""
GROUP_ROWS = 1000
"""Rows in a row group of the parquet file."""
HISTOGRAM_BINS = 30

Row = dict[str, Any]


def tokenize_file(
    dataset: Path, model: Path, out: Path, *, max_tokens: int, scratch: Path, workers: int, progress: Progress
) -> dict[str, Any]:
    """Tokenize a dataset.jsonl into `out`: tokens.parquet, dropped.jsonl and tokens.json; returns the latter.

    Args:
        dataset: rows with `id`, `prompt` and `response`.
        model: a Hugging Face model directory with tokenizer and chat template.
        max_tokens: a row with more, prompt included, is dropped: cut, it would lose its answer.
        scratch: keeps finished shards; the same dataset, model and max_tokens at every attempt.
        workers: processes; with 1 the tokenizer's own threads are used instead.

    Raises RequestError for a missing tokenizer or an unfit chat template, StageError where no row is left.
    """
    tokenizer = ChatTokenizer(model, max_tokens)
    work = partial(_tokenize_shard, dataset, model, max_tokens, workers > 1)
    # The items are the places of the lines, so that the rows themselves are never all in memory.
    shards = map_shards(
        _line_offsets(dataset),
        work,
        shard_size=SHARD_ROWS,
        scratch=scratch,
        workers=workers,
        progress=progress,
    )
    rows = zip(read_jsonl(dataset), chain.from_iterable(map(read_jsonl, shards)), strict=True)
    with open(out / "dropped.jsonl", "w", encoding="utf-8") as dropped:
        summary = _write(rows, out / "tokens.parquet", dropped, tokenizer, max_tokens)
    write_json(out / "tokens.json", summary)
    return summary


def tokenize_rows(rows: Iterable[Row], model: Path, destination: Path, *, max_tokens: int) -> dict[str, Any]:
    """Tokenize rows in this process into the parquet file `destination`; returns what tokens.json would say."""
    tokenizer = ChatTokenizer(model, max_tokens)

    def results() -> Iterator[tuple[Row, Row]]:
        source = iter(rows)
        while batch := list(islice(source, BATCH_ROWS)):
            yield from zip(batch, _encode(tokenizer, batch), strict=True)

    return _write(results(), destination, None, tokenizer, max_tokens)


def _line_offsets(path: Path) -> "array[int]":
    """Where each line that is not blank begins, in bytes."""
    offsets, position = array("q"), 0
    with open(path, "rb") as handle:
        for line in handle:
            if line.strip():
                offsets.append(position)
            position += len(line)
    return offsets


def _tokenize_shard(
    dataset: Path, model: Path, max_tokens: int, in_worker: bool, _index: int, offsets: Sequence[int]
) -> list[Row]:
    """Tokenize the rows at some places of the dataset, in the form of `_encode`."""
    if in_worker:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = ChatTokenizer(model, max_tokens)
    return _encode(tokenizer, list(_rows_at(dataset, offsets)))


def _rows_at(path: Path, offsets: Sequence[int]) -> Iterator[Row]:
    with open(path, "rb") as handle:
        for offset in offsets:
            handle.seek(offset)
            try:
                yield json.loads(handle.readline())
            except ValueError:
                deque(read_jsonl(path), maxlen=0)  # raises the RequestError that names the line
                raise


def _encode(tokenizer: ChatTokenizer, rows: Sequence[Row]) -> list[Row]:
    """For each row its id with either tokens (`input_ids`, `prompt_tokens`, `eos`) or the `reason` to drop it."""
    encoded: list[Row] = []
    for start in range(0, len(rows), BATCH_ROWS):
        batch = rows[start : start + BATCH_ROWS]
        for row, result in zip(batch, tokenizer.encode(batch), strict=True):
            if isinstance(result, Tokenized):
                tokens = {"input_ids": result.input_ids, "prompt_tokens": result.prompt_tokens}
                encoded.append({"id": row["id"], **tokens, "eos": result.ends_with_eos})
            else:
                encoded.append({"id": row["id"], "reason": result})
    return encoded


def _write(
    results: Iterable[tuple[Row, Row]],
    destination: Path,
    dropped: TextIO | None,
    tokenizer: ChatTokenizer,
    max_tokens: int,
) -> dict[str, Any]:
    """Write pairs of a row and what `_encode` made of it; returns the summary that tokens.json holds."""
    reasons: Counter[str] = Counter()
    lengths = array("q")
    completion_tokens = without_eos = 0

    def kept() -> Iterator[Row]:
        nonlocal completion_tokens, without_eos
        for row, tokens in results:
            if reason := tokens.get("reason"):
                reasons[reason] += 1
                if dropped is not None:
                    dropped.write(jsonl_line({**row, "dropped_by": "tokenize", "reason": reason}))
                continue
            ids, prompt = tokens["input_ids"], tokens["prompt_tokens"]
            lengths.append(len(ids))
            completion_tokens += len(ids) - prompt
            without_eos += not tokens["eos"]
            mask = [0] * prompt + [1] * (len(ids) - prompt)
            yield {"input_ids": ids, "completion_mask": mask, "id": tokens["id"]}

    _write_parquet(destination, kept())
    counts = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
    if not lengths:
        raise _nothing_left(counts, max_tokens)
    return {
        "rows": len(lengths),
        "tokens": sum(lengths),
        "completion_tokens": completion_tokens,
        "longest": max(lengths),
        "max_tokens": max_tokens,
        "rows_without_eos": without_eos,
        "dropped": counts,
        **tokenizer.identity(),
        "histogram": _histogram(lengths),
    }


def _write_parquet(path: Path, rows: Iterator[Row]) -> None:
    """Publish rows as parquet by rename; the same rows give the same bytes with one version of pyarrow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [("input_ids", pa.list_(pa.int32())), ("completion_mask", pa.list_(pa.int8())), ("id", pa.string())]
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        while group := list(islice(rows, GROUP_ROWS)):
            writer.write_table(pa.Table.from_pylist(group, schema), row_group_size=GROUP_ROWS)
    fsync_path(temporary)
    os.replace(temporary, path)
    fsync_path(path.parent)


def _histogram(lengths: Sequence[int]) -> dict[str, list[int]]:
    """Rows by their number of tokens, in equal bins from 0; bin i holds lengths in [edges[i], edges[i + 1])."""
    width = -(-(max(lengths) + 1) // HISTOGRAM_BINS)
    counts = Counter(length // width for length in lengths)
    bins = max(counts) + 1
    return {"edges": [width * edge for edge in range(bins + 1)], "counts": [counts[index] for index in range(bins)]}


def _nothing_left(dropped: dict[str, int], max_tokens: int) -> StageError:
    if not dropped:
        return StageError("tokenize: the dataset has no rows")
    reason, count = next(iter(dropped.items()))
    hint = f"; raise max_tokens, now {max_tokens}" if reason == "over_max_tokens" else ""
    return StageError(f"tokenize: all rows were dropped, {count} of them for {reason!r}{hint}")
