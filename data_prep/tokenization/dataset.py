"""Tokenization: curated rows become token ids with a mask over the completion, in a parquet file.

The stage `tokenize` and the training of a base model call it. The dataset is cut into ranges of bytes that survive a
kill and that an array of jobs can share; the files are put together from them in order, so neither kills nor workers
nor the number of jobs change a byte.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.formats.parquet_parts import concatenate
from data_prep.formats.tokens_parquet import TokensWriter, split
from data_prep.shards import map_shards
from data_prep.sources.lines import Span, spans
from data_prep.tokenization.chat import Batch, ChatTokenizer
from data_prep.tokenization.rows import Chats, read_chats
from reasonforge.errors import RequestError, StageError
from reasonforge.files import jsonl_line, published, read_jsonl, write_json
from reasonforge.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHARD_BYTES = 16 << 20
"""Bytes of the dataset tokenized between two saves."""
BATCH_ROWS = 64
"""Rows encoded at once where they do not come from a file."""
HISTOGRAM_BINS = 30

Row = dict[str, Any]


@dataclass(frozen=True)
class Tokenization:
    """What decides the output.

    Args:
        dataset: a jsonl file of rows with `id`, `prompt` and `response`, and `problem_id` where problems have several.
        model: a Hugging Face model directory with tokenizer and chat template.
        max_tokens: a row with more, prompt included, is dropped: cut, it would lose its answer.
        held_out: at least so many rows, all rows of some problems, are set apart for validation.
        seed: of the choice of these problems.
    """

    dataset: Path
    model: Path
    max_tokens: int
    held_out: int = 0
    seed: int = 0

    def spans(self) -> list[Span]:
        """The ranges of the dataset that are tokenized one by one."""
        if not self.dataset.is_file():
            raise RequestError(str(self.dataset), "no such file")
        return spans(self.dataset, SHARD_BYTES)


def tokenize_file(
    dataset: Path, model: Path, out: Path, *, max_tokens: int, scratch: Path, workers: int, progress: Progress
) -> Row:
    """Tokenize a dataset.jsonl into `out` in one go: `tokenize_part` of one part, then `finish`."""
    plan = Tokenization(dataset, model, max_tokens)
    tokenize_part(plan, 0, 1, scratch=scratch, workers=workers, progress=progress)
    return finish(plan, 1, out, scratch=scratch)


def tokenize_part(
    plan: Tokenization, part: int, parts: int, *, scratch: Path, workers: int, progress: Progress
) -> list[Path]:
    """Tokenize one of several parts of the dataset into `scratch`; returns the receipts of its shards.

    Args:
        scratch: keeps finished shards; for the same plan at every attempt, and for all its parts.
        workers: processes.
        progress: counts shards; how many there are is set here.

    Raises RequestError for a missing tokenizer, an unfit chat template or a bad line, which it names.
    """
    tokenizer_of(plan)  # refused before any work
    ranges = plan.spans()
    mine = ranges[part * len(ranges) // parts : (part + 1) * len(ranges) // parts]
    place = scratch / f"part-{part:05d}-of-{parts:05d}"
    progress.total, progress.unit = len(mine), "shards"
    work = partial(_tokenize_shard, plan, place, workers > 1)
    return list(map_shards(mine, work, shard_size=1, scratch=place, workers=workers, progress=progress))


def finish(plan: Tokenization, parts: int, out: Path, *, scratch: Path) -> Row:
    """Put the files together from parts that are done; returns what tokens.json says.

    They are tokens.parquet, dropped.jsonl, tokens.json, and held_out.parquet where rows are set apart.

    Raises StageError where no row is left to train on, RequestError where there was none.
    """
    import numpy as np

    receipts = [path for part in range(parts) for path in _receipts(plan, part, parts, scratch)]
    reasons: Counter[str] = Counter()
    for receipt in receipts:
        reasons.update(next(read_jsonl(receipt))["dropped"])
    shards = [receipt.with_name(receipt.stem.replace("shard", "rows")) for receipt in receipts]
    tables = [np.fromfile(shard.with_suffix(".bin"), _numbers()) for shard in shards]
    rows = np.concatenate([np.empty(0, _numbers()), *tables])
    chosen = _choose(rows["problem"], plan.held_out)
    if len(rows) and chosen.all():
        raise StageError(f"tokenize: held_out takes all {len(rows)} rows; lower it, now {plan.held_out}")
    if not len(rows) and not reasons:
        raise RequestError(str(plan.dataset), "no rows to tokenize")
    summary = _summary(rows[~chosen], dict(reasons), tokenizer_of(plan), plan.max_tokens)
    if plan.held_out:
        apart = rows[chosen]
        summary["held_out"] = {
            "rows": len(apart),
            "problems": len(np.unique(apart["problem"])),
            "tokens": int(apart["tokens"].sum()),
        }
    with published(out / "dropped.jsonl") as handle:
        for shard in shards:
            with open(shard.with_suffix(".dropped.jsonl"), "rb") as dropped:
                shutil.copyfileobj(dropped, handle)
    kept, taken = _split(shards, tables, chosen, scratch)
    with published(out / "tokens.parquet") as handle:
        concatenate(kept, handle)
    if taken:
        with published(out / "held_out.parquet") as handle:
            concatenate(taken, handle)
    write_json(out / "tokens.json", summary)
    return summary


def tokenize_rows(rows: Iterable[Row], model: Path, destination: Path, *, max_tokens: int) -> Row:
    """Tokenize rows in this process into the parquet file `destination`; returns what tokens.json would say."""
    import numpy as np

    tokenizer = ChatTokenizer(model, max_tokens)
    source, reasons = iter(rows), Counter[str]()
    numbers = [np.empty(0, _numbers())]
    with published(destination) as handle, TokensWriter(handle) as writer:
        while batch := list(islice(source, BATCH_ROWS)):
            encoded = tokenizer.encode_batch([row["prompt"] for row in batch], [row["response"] for row in batch])
            writer.add(encoded, [row["id"] for index, row in enumerate(batch) if index not in encoded.dropped])
            reasons.update(encoded.dropped.values())
            numbers.append(_numbered(encoded))
        return _summary(np.concatenate(numbers), dict(reasons), tokenizer, max_tokens)


def _receipts(plan: Tokenization, part: int, parts: int, scratch: Path) -> Iterator[Path]:
    total = len(plan.spans())
    for index in range((part + 1) * total // parts - part * total // parts):
        yield scratch / f"part-{part:05d}-of-{parts:05d}" / f"shard-{index:06d}.jsonl"


def _tokenize_shard(plan: Tokenization, place: Path, in_worker: bool, index: int, ranges: "list[Span]") -> list[Row]:
    """Tokenize one range into three files, then say what was dropped."""
    if in_worker:
        os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    (span,) = ranges
    tokenizer = tokenizer_of(plan)
    shard = place / f"rows-{index:06d}"
    reasons: Counter[str] = Counter()
    with (
        published(shard.with_suffix(".parquet")) as tokens,
        published(shard.with_suffix(".bin")) as numbers,
        published(shard.with_suffix(".dropped.jsonl")) as dropped,
        TokensWriter(tokens) as writer,
    ):
        for chats in read_chats(plan.dataset, span):
            batch = tokenizer.encode_batch(chats.prompts, chats.responses)
            writer.add(batch, [name for row, name in enumerate(chats.ids) if row not in batch.dropped])
            numbered = _numbered(batch)
            if plan.held_out:
                numbered["problem"] = list(_hashes(plan.seed, chats, batch))
            numbers.write(numbered.tobytes())
            reasons.update(batch.dropped.values())
            for row, reason in batch.dropped.items():
                whole = {**json.loads(chats.lines[row]), "dropped_by": "tokenize", "reason": reason}
                dropped.write(jsonl_line(whole).encode())
    return [{"dropped": reasons}]


def tokenizer_of(plan: Tokenization) -> ChatTokenizer:
    """The tokenizer, tried on the first rows; one for all shards of a process."""
    files = (plan.model / name for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"))
    states = tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in files)
    return _cached_tokenizer(plan.model, plan.max_tokens, plan.dataset, states)


@lru_cache(maxsize=1)
def _cached_tokenizer(model: Path, max_tokens: int, dataset: Path, _states: tuple[int, ...]) -> ChatTokenizer:
    return ChatTokenizer(model, max_tokens, _sample(dataset))


def _sample(dataset: Path) -> list[Row]:
    if not dataset.is_file() or not dataset.stat().st_size:
        return []
    try:
        first: Chats = next(read_chats(dataset, (0, 1 << 18)))
    except RequestError:  # the line is named once its shard comes
        return []
    pairs = zip(first.prompts, first.responses, strict=True)
    return [{"prompt": prompt, "response": response} for prompt, response in islice(pairs, BATCH_ROWS)]


def _numbers() -> "np.dtype[Any]":
    """What is kept of each row beside its tokens."""
    import numpy as np

    return np.dtype([("tokens", "<i4"), ("completion", "<i4"), ("eos", "?"), ("problem", "<u8")])


def _numbered(batch: Batch) -> "NDArray[Any]":
    import numpy as np

    found = np.zeros(len(batch.lengths), _numbers())
    found["tokens"], found["completion"] = batch.lengths, batch.lengths - batch.prompts
    found["eos"] = batch.ends_with_eos
    return found


def _hashes(seed: int, chats: Chats, batch: Batch) -> Iterator[int]:
    """A number for each kept row's problem, the same wherever it stands."""
    for row, problem in enumerate(chats.problems):
        if row not in batch.dropped:
            digest = blake2b(f"{seed}\0{problem}".encode(), digest_size=8).digest()
            yield int.from_bytes(digest, "little")


def _choose(problems: "NDArray[np.uint64]", rows: int) -> "NDArray[np.bool_]":
    """Which rows are held out: those of the problems with the smallest hashes, as few as have `rows` rows."""
    import numpy as np

    if not rows or not len(problems):
        return np.zeros(len(problems), np.bool_)
    if rows >= len(problems):
        return np.ones(len(problems), np.bool_)
    found: NDArray[np.bool_] = problems <= np.partition(problems, rows - 1)[rows - 1]
    return found


def _split(
    shards: list[Path], tables: "list[NDArray[Any]]", chosen: "NDArray[np.bool_]", scratch: Path
) -> tuple[list[Path], list[Path]]:
    """The parquet files of the rows to train on, and of those that are held out."""
    kept, taken, row = [], [], 0
    for number, (shard, table) in enumerate(zip(shards, tables, strict=True)):
        here = chosen[row : row + len(table)]
        row += len(table)
        rest, apart = (scratch / f"{name}-{number:06d}.parquet" for name in ("kept", "taken"))
        if here.any():
            with published(rest, durable=False) as one, published(apart, durable=False) as other:
                split(shard.with_suffix(".parquet"), here, one, other)
            taken.append(apart)
        kept.append(rest if here.any() else shard.with_suffix(".parquet"))
    return kept, taken


def _summary(rows: "NDArray[Any]", reasons: dict[str, int], tokenizer: ChatTokenizer, max_tokens: int) -> Row:
    """What tokens.json says of the rows to train on."""
    dropped = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
    if not len(rows):
        raise _nothing_left(dropped, max_tokens)
    return {
        "rows": len(rows),
        "tokens": int(rows["tokens"].sum()),
        "completion_tokens": int(rows["completion"].sum()),
        "longest": int(rows["tokens"].max()),
        "max_tokens": max_tokens,
        "rows_without_eos": int((~rows["eos"]).sum()),
        "dropped": dropped,
        **tokenizer.identity(),
        "histogram": _histogram(rows["tokens"]),
    }


def _histogram(lengths: "NDArray[np.int32]") -> dict[str, list[int]]:
    """Rows by their number of tokens, in equal bins from 0; bin i holds lengths in [edges[i], edges[i + 1])."""
    import numpy as np

    width = -(-(int(lengths.max()) + 1) // HISTOGRAM_BINS)
    counts = np.bincount(lengths // width).tolist()
    return {"edges": [width * edge for edge in range(len(counts) + 1)], "counts": counts}


def _nothing_left(dropped: dict[str, int], max_tokens: int) -> StageError:
    if not dropped:
        return StageError("tokenize: the dataset has no rows")
    reason, count = next(iter(dropped.items()))
    hint = f"; raise max_tokens, now {max_tokens}" if reason == "over_max_tokens" else ""
    return StageError(f"tokenize: all rows were dropped, {count} of them for {reason!r}{hint}")
