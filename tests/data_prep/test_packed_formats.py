"""Packed files hold every row once with its labels masked right, and the real NeMo reads them.

NeMo lives in an environment of its own, made by `make nemo-env`; NEMO_PYTHON names another interpreter. Without either,
what needs it is skipped, but fails where CI is true.
"""

import json
import os
import pickletools
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nemo_place import nemo_python

from data_prep.formats import packed_rows
from data_prep.formats.bridge_packed import write_bridge_packed
from data_prep.formats.nemo_packed import write_nemo_packed
from data_prep.tokenization.dataset import tokenize_rows
from reasonforge.errors import RequestError
from reasonforge.files import read_json, read_jsonl, sha256_file

ROOT = Path(__file__).parents[2]
SIDE = Path(__file__).with_name("packed_nemo_side.py")
EOS = 2
WRITERS = {"nemo": (write_nemo_packed, "packed.npy"), "bridge": (write_bridge_packed, "packed.idx.parquet")}
SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("completion_mask", pa.list_(pa.int8())), ("id", pa.string())])

Row = dict[str, Any]
Bins = list[Row]

both = pytest.mark.parametrize("kind", list(WRITERS))


def row(number: int, tokens: int, prompt: int) -> Row:
    """A row whose tokens nobody else has; the sizes of its ids need one, two and four bytes."""
    ids = [number * 1000 + place if place % 3 else 3 + place % 200 for place in range(tokens)]
    return {"input_ids": ids, "completion_mask": [0] * prompt + [1] * (tokens - prompt), "id": f"p{number}/0"}


def some_rows(count: int, longest: int, seed: int = 0) -> list[Row]:
    random = Random(seed)
    sizes = [random.randint(2, longest) for _ in range(count)]
    return [row(number, size, random.randrange(size)) for number, size in enumerate(sizes)]


def save(path: Path, rows: list[Row], group: int = 1000) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path, compression="zstd", row_group_size=group)
    return path


def write(kind: str, tokens: Path, directory: Path, pack_size: int, **options: Any) -> tuple[Path, Row]:
    writer, name = WRITERS[kind]
    directory.mkdir(exist_ok=True)
    return directory / name, writer(tokens, directory / name, pack_size=pack_size, **options)


def read(path: Path) -> Bins:
    if path.suffix == ".npy":
        return list(np.load(path, allow_pickle=True))
    return pq.read_table(path).to_pylist()  # type: ignore[no-any-return]


def take_apart(bins: Bins) -> list[tuple[list[int], list[int]]]:
    """Every row of every bin, with its mask."""
    rows = []
    for packed in bins:
        ids, mask, starts = packed["input_ids"], packed["loss_mask"], packed["seq_start_id"]
        assert len(mask) == len(ids)
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            rows.append((ids[start:end], list(map(int, mask[start:end]))))
    return rows


def expected(rows: list[Row]) -> list[tuple[list[int], list[int]]]:
    """What a trainer has to see of each row: the mask of a token is that of the label, which is the next token."""
    return [(one["input_ids"], [*one["completion_mask"][1:], 0]) for one in rows]


@both
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.tuples(st.integers(2, 21), st.integers(0, 20)), min_size=1, max_size=40),
    group=st.integers(1, 30),
    seed=st.integers(0, 9),
)
def test_every_row_is_there_once_with_its_mask(
    tmp_path: Path, kind: str, sizes: list[tuple[int, int]], group: int, seed: int
) -> None:
    rows = [row(number, size, min(prompt, size)) for number, (size, prompt) in enumerate(sizes)]
    path, summary = write(kind, save(tmp_path / "tokens.parquet", rows, group), tmp_path, 20, seed=seed)
    bins = read(path)
    assert sorted(take_apart(bins)) == sorted(expected(rows))
    counted = [len(packed["input_ids"]) - len(packed["seq_start_id"]) for packed in bins]
    assert max(counted) <= 20
    assert (summary["bins"], summary["rows"], summary["tokens"]) == (len(bins), len(rows), sum(counted))
    (metadata,) = read_json(tmp_path / "packed_metadata.json")
    assert metadata == {
        "dataset_max_seqlen": max(len(one["input_ids"]) for one in rows) - 1,
        "max_samples_per_bin": max(len(packed["seq_start_id"]) for packed in bins),
        "packing_factor": round(len(rows) / len(bins), 2),
        "packing_efficiency": round(sum(counted) / len(bins) / 20 * 100, 2),
        "pack_size": 20,
        "min_packed_seqlen": min(counted),
    }


def test_both_formats_hold_the_same_bins_in_many_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of three bins, and input batches of seven rows, leave no trace."""
    tokens = save(tmp_path / "tokens.parquet", some_rows(300, 40), 90)
    whole = {kind: read(write(kind, tokens, tmp_path / "whole", 64)[0]) for kind in WRITERS}
    monkeypatch.setattr(packed_rows, "CHUNK_TOKENS", 3 * 64)
    monkeypatch.setattr(packed_rows, "READ_ROWS", 7)
    chunked = {kind: read(write(kind, tokens, tmp_path / "chunked", 64)[0]) for kind in WRITERS}
    assert len(whole["nemo"]) > 60
    assert whole["nemo"] == whole["bridge"] == chunked["nemo"] == chunked["bridge"]
    assert pq.ParquetFile(tmp_path / "chunked/packed.idx.parquet").metadata.row_group(0).num_rows == 3


@both
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    tokens = save(tmp_path / "tokens.parquet", some_rows(80, 40))
    other = save(tmp_path / "other.parquet", some_rows(80, 40), 13)
    paths = [write(kind, source, tmp_path / f"out{number}", 64)[0] for number, source in enumerate([tokens, other])]
    assert sha256_file(paths[0]) == sha256_file(paths[1])
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted([paths[0].name, "packed_metadata.json"])
    assert sha256_file(paths[0]) != sha256_file(write(kind, tokens, tmp_path / "out2", 64, seed=1)[0])


def test_the_pickle_is_the_one_numpy_would_write(tmp_path: Path) -> None:
    """Number by number, truth by truth; frames and the memo are left out."""
    path, _ = write("nemo", save(tmp_path / "tokens.parquet", some_rows(30, 40)), tmp_path, 64)
    with open(tmp_path / "numpy.npy", "wb") as handle:
        np.save(handle, np.load(path, allow_pickle=True))

    def elements(file: Path) -> list[tuple[str, Any]]:
        with open(file, "rb") as handle:
            np.lib.format.read_magic(handle)
            np.lib.format.read_array_header_1_0(handle)
            pickled = [(code.name, value) for code, value, _ in pickletools.genops(handle)]
        return [(name, value) for name, value in pickled if name.startswith(("BININT", "NEW", "EMPTY"))]

    assert elements(path) == elements(tmp_path / "numpy.npy")
    assert path.read_bytes()[:128] == (tmp_path / "numpy.npy").read_bytes()[:128]


def test_bridge_gets_what_its_own_writer_makes(tmp_path: Path) -> None:
    """The call of `write_packed_parquet` (Megatron-Bridge, August 2026) on the same rows gives the same bytes."""
    path, _ = write("bridge", save(tmp_path / "tokens.parquet", some_rows(2500, 40)), tmp_path, 64)
    bins = read(path)
    assert len(bins) > 500
    table = pa.table(
        {
            "input_ids": [packed["input_ids"] for packed in bins],
            "loss_mask": pa.array([packed["loss_mask"] for packed in bins], pa.list_(pa.int8())),
            "seq_start_id": [packed["seq_start_id"] for packed in bins],
        }
    )
    pq.write_table(table, tmp_path / "theirs.parquet", row_group_size=500)
    assert path.read_bytes() == (tmp_path / "theirs.parquet").read_bytes()
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "SNAPPY"


@both
def test_rows_from_the_tokenizer_keep_their_completion(tmp_path: Path, tiny_model: Path, kind: str) -> None:
    """From text on: the labels that are learned are the completion's tokens, the first one and EOS included."""
    texts = [{"id": str(n), "prompt": f"What is {n}+{n}?", "response": f"\\boxed{{{2 * n}}}"} for n in range(20)]
    tokenize_rows(texts, tiny_model, tmp_path / "tokens.parquet", max_tokens=200)
    path, _ = write(kind, tmp_path / "tokens.parquet", tmp_path, 128)
    rows = pq.read_table(tmp_path / "tokens.parquet").to_pylist()
    completions = {
        tuple(token for token, learned in zip(one["input_ids"], one["completion_mask"], strict=True) if learned)
        for one in rows
    }
    labels = {
        tuple(label for label, learned in zip(ids[1:], mask[:-1], strict=True) if learned)
        for ids, mask in take_apart(read(path))
    }
    assert labels == completions
    assert len(labels) == 20


@both
def test_rows_that_fit_no_bin_are_refused_by_name_or_dropped_and_counted(tmp_path: Path, kind: str) -> None:
    rows = [row(0, 5, 2), row(1, 11, 4), row(2, 12, 4), row(3, 1, 0), row(4, 30, 1)]
    tokens = save(tmp_path / "tokens.parquet", rows)
    with pytest.raises(RequestError) as caught:
        write(kind, tokens, tmp_path, 10)
    problem = "has 12 tokens, and a bin of 10 takes rows of 2 to 11; drop it or raise pack_size"
    assert str(caught.value) == f"{tokens}: row 2 ('p2/0'): {problem}"
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.parquet"]
    path, summary = write(kind, tokens, tmp_path, 10, dropped=tmp_path / "dropped.jsonl")
    assert sorted(take_apart(read(path))) == sorted(expected(rows[:2]))
    assert summary["dropped"] == {"no_label": 1, "over_pack_size": 2}
    assert list(read_jsonl(tmp_path / "dropped.jsonl")) == [
        {"row": 2, "id": "p2/0", "tokens": 12, "reason": "over_pack_size"},
        {"row": 3, "id": "p3/0", "tokens": 1, "reason": "no_label"},
        {"row": 4, "id": "p4/0", "tokens": 30, "reason": "over_pack_size"},
    ]


def nothing(path: Path) -> None:
    pass


def garbage(path: Path) -> None:
    path.write_bytes(b"PAR1 but nothing else")


def cut(path: Path) -> None:
    save(path, some_rows(50, 20))
    path.write_bytes(path.read_bytes()[:-40])


def without_mask(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(some_rows(3, 9), SCHEMA).drop_columns("completion_mask"), path)


def of_text(path: Path) -> None:
    table = pa.Table.from_pylist([{"input_ids": "no", "completion_mask": [1], "id": "a"}])
    pq.write_table(table, path)


def changed(**fields: Any) -> Callable[[Path], None]:
    """A file whose row 7 has other values."""

    def make(path: Path) -> None:
        rows = some_rows(9, 9)
        rows[7] |= fields
        save(path, rows)

    return make


@both
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, "no such file"),
        (garbage, "it cannot be read as parquet: "),
        (cut, "it cannot be read as parquet: "),
        (without_mask, "its column 'completion_mask' is missing; reasonforge tokenizes into list<"),
        (of_text, "its column 'input_ids' is of type string; reasonforge tokenizes into list<"),
        (lambda path: save(path, []), "it has no row that a bin of 20 tokens takes"),
        (changed(input_ids=None), "its column 'input_ids' has nulls; tokenize the data again"),
        (changed(completion_mask=[0, None]), "its column 'completion_mask' has nulls; tokenize the data again"),
        (changed(completion_mask=[0, 1]), "row 7 ('p7/0'): has a mask of another length; tokenize the data again"),
        (changed(input_ids=[-1, 3], completion_mask=[0, 1]), "row 7 ('p7/0'): has a token below 0 or a mask that "),
        (changed(input_ids=[4, 3], completion_mask=[0, 2]), "row 7 ('p7/0'): has a token below 0 or a mask that "),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, kind: str, make: Callable[[Path], None], message: str
) -> None:
    tokens = tmp_path / "tokens.parquet"
    make(tokens)
    with pytest.raises(RequestError) as caught:
        write(kind, tokens, tmp_path / "out", 20)
    assert str(caught.value).startswith(f"{tokens}: {message}")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("kind", "name"), [("nemo", "packed.bin"), ("bridge", "packed.npy")])
def test_a_name_that_the_framework_does_not_take_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    tokens = save(tmp_path / "tokens.parquet", some_rows(3, 9))
    with pytest.raises(RequestError, match=r"takes packed sequences .*; name it so"):
        WRITERS[kind][0](tokens, tmp_path / name, pack_size=20)


PEAKS = """
import sys, tracemalloc
from pathlib import Path
import pyarrow
from data_prep.formats.nemo_packed import write_nemo_packed
tracemalloc.start()
write_nemo_packed(Path(sys.argv[1]), Path(sys.argv[2]), pack_size=2000)
print(tracemalloc.get_traced_memory()[1], pyarrow.default_memory_pool().max_memory())
"""


def test_memory_is_that_of_a_chunk(tmp_path: Path) -> None:
    """Eight times the rows take hardly more (what is counted for each row), neither in NumPy nor in Arrow."""
    peaks = []
    for count in (600, 4800):
        tokens = save(tmp_path / f"{count}.parquet", some_rows(count, 2000), 200)
        command = [sys.executable, "-c", PEAKS, str(tokens), str(tmp_path / f"{count}.npy")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        peaks.append([int(number) for number in done.stdout.split()])
    assert peaks[1][0] < 1.5 * peaks[0][0]
    assert peaks[1][1] < 1.5 * peaks[0][1]


@pytest.mark.xdist_group("nemo")
def test_the_real_nemo_makes_the_right_batches(tmp_path: Path) -> None:
    python = nemo_python()
    rows = [*some_rows(25, 33, seed=4), row(25, 33, 0), row(26, 2, 1)]
    tokens = save(tmp_path / "tokens.parquet", rows)
    path, summary = write("nemo", tokens, tmp_path, 32)
    files = {
        name: {
            "data": str(path),
            "pack_size": 32,
            "pad_cu_seqlens": name == "padded",
            "metadata": str(tmp_path / "packed_metadata.json"),
        }
        for name in ("plain", "padded")
    }
    (tmp_path / "job.json").write_text(json.dumps({"files": files, "eos_id": EOS, "out": str(tmp_path / "out.json")}))
    done = subprocess.run(
        [python, str(SIDE), str(tmp_path / "job.json")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NEMO_HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    found = read_json(tmp_path / "out.json")
    batches = found["plain"]["single"]
    assert len(batches) == summary["bins"]
    seen = [one for batch in batches for one in rows_of_batch(batch)]
    wanted = [(one["input_ids"][:-1], one["input_ids"][1:], one["completion_mask"][1:]) for one in rows]
    assert sorted(seen) == sorted(wanted)
    pairs = found["plain"]["pairs"]
    singles = batches[: 2 * len(pairs)]
    for name in ("tokens", "labels", "loss_mask", "position_ids"):
        assert [one for pair in pairs for one in pair[name]] == [batch[name][0] for batch in singles]
    (metadata,) = read_json(tmp_path / "packed_metadata.json")
    widths = {len(batch["cu_seqlens"][0]) for batch in found["padded"]["single"]}
    assert len(widths) == 1, "with the metadata NeMo can give every batch the same shape"
    assert widths.pop() >= metadata["max_samples_per_bin"] + 2


def rows_of_batch(batch: Row) -> list[tuple[list[int], list[int], list[int]]]:
    """Inputs, labels and loss mask of each row, cut where NeMo tells attention to begin anew."""
    bounds = [place for place in batch["cu_seqlens"][0] if place >= 0]
    if batch["token_count"][0] < 32:  # NeMo adds one more sequence, of padding
        assert bounds.pop() == 32
    assert bounds[-1] == batch["token_count"][0]
    tokens, labels, mask, positions = (batch[name][0] for name in ("tokens", "labels", "loss_mask", "position_ids"))
    assert not any(mask[bounds[-1] :])
    rows = []
    for start, end in pairwise(bounds):
        assert positions[start:end] == list(range(end - start))
        rows.append((tokens[start:end], labels[start:end], mask[start:end]))
    return rows
