import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import killing
import numpy as np
import pytest
from bpe_fixture import save_bpe
from tokenizers import Tokenizer

from data_prep.formats.megatron_indexed import Plan, write_indexed
from data_prep.sources import documents
from data_prep.sources.documents import document_spans, read_documents
from reasonforge import jsonl
from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl
from reasonforge.progress import Progress

Row = dict[str, Any]
ROOT = Path(__file__).parents[2]
SUFFIXES = (".bin", ".idx")

REFERENCE = """
import json, sys
import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

work, ours, vocabulary = sys.argv[1:4]
builder = IndexedDatasetBuilder(work + "/theirs.bin", dtype=DType.optimal_dtype(int(vocabulary)))
for line in open(work + "/documents.jsonl"):
    builder.add_document(*json.loads(line))
builder.finalize(work + "/theirs.idx")
read = IndexedDataset(ours)
json.dump({"sequences": [read[i].tolist() for i in range(len(read))], "lengths": read.sequence_lengths.tolist(),
           "documents": read.document_indices.tolist()}, open(work + "/read.json", "w"))
"""


@pytest.fixture(scope="module", params=["qwen", "llama"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bpe(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bpe(tmp_path_factory.mktemp("one"))


def corpus(count: int) -> list[Row]:
    """Rows with every kind of text: empty, with marks, with special tokens, as sentences, of several lengths."""
    random = Random(5)
    pieces = [
        "the answer ",
        "42",
        "\n\n",
        "é",
        "e\u0301",
        "😀 ",
        "<|im_end|>",
        "中文",
        "\x00",
        "\u2028",
        "\x85",
        "isn't ",
    ]
    rows: list[Row] = [{"text": ""}, {"text": []}, {"text": ["one", "", "two"]}, {"text": [""]}, {"id": 1, "text": " "}]
    for number in range(count):
        text = "".join(random.choices(pieces, k=random.randrange(40)))
        rows.append({"n": number, "text": text if number % 7 else [text, text[:5]], "other": {"text": "é"}})
    return rows


def write(path: Path, rows: list[Row], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, **options) + "\n" for row in rows), encoding="utf-8")
    return path


def make(plan: Plan, directory: Path, workers: int = 1) -> Row:
    with Progress("tokenizing", 1, "shards") as progress:
        return write_indexed(plan, directory / "out", scratch=directory / "scratch", workers=workers, progress=progress)


def made(directory: Path, column: str = "text") -> tuple[bytes, ...]:
    return tuple((directory / f"out_{column}_document{suffix}").read_bytes() for suffix in SUFFIXES)


def as_megatron_does(model: Path, rows: list[Row], eod: bool) -> list[tuple[list[int], list[int]]]:
    """Tokens and lengths of each document, by what tools/preprocess_data.py says."""
    core = Tokenizer.from_file(str(model / "tokenizer.json"))
    token = core.token_to_id(json.loads((model / "tokenizer_config.json").read_text())["eos_token"])
    found = []
    for row in rows:
        texts = row["text"] if isinstance(row["text"], list) else [row["text"]]
        sequences = [ids for ids in (core.encode(text).ids for text in texts) if ids]
        lengths = [len(ids) for ids in sequences]
        ids = [one for ids in sequences for one in ids]
        if ids and eod:
            ids.append(token)
            lengths[-1] += 1
        found.append((ids, lengths))
    return found


@pytest.mark.parametrize(("version", "eod"), [("0.15.3", False), ("0.16.1", True)])
def test_the_files_are_those_of_megatron_core(model: Path, tmp_path: Path, version: str, eod: bool) -> None:
    """Its IndexedDatasetBuilder writes the same bytes, and its IndexedDataset reads what was tokenized."""
    core = ROOT / ".megatron" / version
    if not core.is_dir():
        pytest.skip("make megatron")
    rows = corpus(300)
    summary = make(Plan(write(tmp_path / "in.jsonl", rows), model, append_eod=eod), tmp_path)
    expected = as_megatron_does(model, rows, eod)
    write(tmp_path / "documents.jsonl", expected)  # type: ignore[arg-type]
    command = [sys.executable, "-c", REFERENCE, str(tmp_path), str(tmp_path / "out_text_document"), "600"]
    environment = {**os.environ, "PYTHONPATH": str(core), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert made(tmp_path) == tuple((tmp_path / f"theirs{suffix}").read_bytes() for suffix in SUFFIXES)
    read = json.loads((tmp_path / "read.json").read_text())
    assert [one for ids in read["sequences"] for one in ids] == [one for ids, _ in expected for one in ids]
    assert read["lengths"] == [length for _, lengths in expected for length in lengths]
    ends = np.cumsum([0, *(len(lengths) for _, lengths in expected)]).tolist()
    assert read["documents"] == ends
    assert (summary["documents"], summary["empty"]) == (305, sum(not lengths for _, lengths in expected))
    assert (summary["tokens"], summary["sequences"]) == (sum(map(len, read["sequences"])), len(read["lengths"]))


def test_the_conventions_of_empty_documents(tmp_path: Path) -> None:
    """Of the NFC tokenizer an empty text has no tokens, so no end either; of the other its first token stays."""
    rows: list[Row] = [{"text": ""}, {"text": "a"}]
    for kind, expected in (("qwen", (1, 1, 2)), ("llama", (0, 2, 5))):
        source = write(tmp_path / kind / "in.jsonl", rows)
        summary = make(Plan(source, save_bpe(tmp_path / kind, kind), append_eod=True), tmp_path / kind)
        assert (summary["empty"], summary["sequences"], summary["tokens"]) == expected


@pytest.mark.parametrize(("entries", "dtype", "code"), [(65_499, "uint16", 8), (65_500, "int32", 4)])
def test_the_type_is_decided_by_the_vocabulary(qwen: Path, tmp_path: Path, entries: int, dtype: str, code: int) -> None:
    core = Tokenizer.from_file(str(qwen / "tokenizer.json"))
    core.add_tokens([f"token {number}" for number in range(entries - core.get_vocab_size())])
    core.save(str(tmp_path / "tokenizer.json"))
    summary = make(Plan(write(tmp_path / "in.jsonl", [{"text": "one"}, {"text": f"token {entries - 700}"}]), tmp_path),
                   tmp_path)  # fmt: skip
    assert summary["dtype"] == dtype
    tokens, index = made(tmp_path)
    assert index[17] == code
    assert np.frombuffer(tokens, dtype).tolist() == core.encode("one").ids + core.encode(f"token {entries - 700}").ids


def test_ids_with_gaps_that_do_not_fit_are_refused(qwen: Path, tmp_path: Path) -> None:
    text = (qwen / "tokenizer.json").read_text()
    description = json.loads(text)
    description["added_tokens"][-1]["id"] = 70_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(RequestError, match="token 70000 does not fit"):
        make(Plan(write(tmp_path / "in.jsonl", [{"text": "one"}]), tmp_path), tmp_path)


def test_shards_and_workers_leave_no_trace(model: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", corpus(200))
    size = source.stat().st_size
    make(Plan(source, model, append_eod=True), tmp_path / "whole")
    for number, (shard_bytes, workers) in enumerate([(size // 4, 1), (size // 7, 2), (40, 1), (size // 5, 4)]):
        make(Plan(source, model, append_eod=True, shard_bytes=shard_bytes), tmp_path / str(number), workers)
        assert made(tmp_path / str(number)) == made(tmp_path / "whole"), (shard_bytes, workers)


DRIVER = """
import sys
from pathlib import Path

from data_prep.formats.megatron_indexed import Plan, write_indexed
from reasonforge.progress import Progress

if __name__ == "__main__":
    source, model, out = map(Path, sys.argv[1:4])
    plan = Plan(source, model, append_eod=True, shard_bytes=source.stat().st_size // 9)
    write_indexed(plan, out / "out", scratch=out / "scratch", workers=int(sys.argv[4]),
                  progress=Progress("tokenizing", 9, "shards"))
"""


def test_kills_leave_no_trace(qwen: Path, tmp_path: Path) -> None:
    source, script = write(tmp_path / "in.jsonl", corpus(6000)), tmp_path / "driver.py"
    script.write_text(DRIVER)
    make(Plan(source, qwen, append_eod=True), tmp_path / "whole")
    killed = tmp_path / "killed"
    plan = Plan(source, qwen, append_eod=True, shard_bytes=source.stat().st_size // 9)
    shards = killed / "scratch" / plan.key()
    for workers, kill_at in ((1, "shard-000000.jsonl"), (2, "part-000004.bin"), (1, "part-000006.lengths")):
        killing.run(script, source, qwen, killed, workers, kill_at=shards / kill_at)
    assert not (killed / "out_text_document.idx").exists()
    first = (shards / "shard-000000.jsonl").stat().st_mtime_ns
    assert not killing.run(script, source, qwen, killed, 1)
    assert (shards / "shard-000000.jsonl").stat().st_mtime_ns == first
    assert made(killed) == made(tmp_path / "whole")


def test_other_input_is_not_taken_from_old_shards(qwen: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"text": "one", "b": "two"}])
    make(Plan(source, qwen), tmp_path)
    before = made(tmp_path)
    make(Plan(source, qwen, append_eod=True), tmp_path)
    assert len(made(tmp_path)[0]) == len(before[0]) + 2
    make(Plan(source, qwen, column="b"), tmp_path)
    assert made(tmp_path, "b") != before
    write(source, [{"text": "three"}])
    make(Plan(source, qwen), tmp_path)
    assert made(tmp_path) != before


def test_a_failed_write_leaves_nothing_under_the_names(qwen: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    source = write(tmp_path / "in.jsonl", [{"text": "one"}])
    with Progress("tokenizing", 1, "shards") as progress, pytest.raises(OSError, match="file"):
        write_indexed(
            Plan(source, qwen), tmp_path / "file" / "out", scratch=tmp_path / "s", workers=1, progress=progress
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in.jsonl", "s"]


BAD: dict[str, tuple[bytes, str]] = {
    "corrupt": (b'{"text": "a', r"not JSON at column \d+"),
    "two on a line": (b'{"text": "a"} {"text": "b"}', r"not JSON at column 15: Extra data"),
    "NUL": (b'{"text": "a\x00b"}', r"not JSON at column 12: .*: a NUL byte"),
    "UTF-8": (b'{"text": "a\xff"}', r"not UTF-8 at byte 11 of the line"),
    "UTF-8 elsewhere": (b'{"text": "a", "b": "\xff"}', r"not UTF-8 at byte 20"),
    "UTF-16 in UTF-8": (b'{"text": "\xed\xa0\x80"}', r"not UTF-8 at byte 10"),
    "surrogate": (b'{"text": "a\\ud800"}', r"text: a lone surrogate"),
    "column": (b'{"txt": "a"}', r"no column 'text'; the columns are 'txt'"),
    "number": (b'{"text": 1}', r"text: found int"),
    "null": (b'{"text": null}', r"text: found null"),
    "list": (b'{"text": ["a", 1]}', r"text: found int"),
    "array": (b'["text"]', r"found a JSON list"),
    "deep": (b'{"text": "a", "b": ' + b"[" * 50_000, r"not JSON"),
    "BOM": (b'\xef\xbb\xbf{"text": "a"}', r"not JSON at column 1: Unexpected UTF-8 BOM"),
}


@pytest.mark.parametrize("fast", [True, False], ids=["msgspec", "json"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_or_set_aside(
    qwen: Path, tmp_path: Path, name: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr(documents, "_decoder", lambda _: jsonl.nothing)
    line, message = BAD[name]
    good = b'{"text": "one"}\n'
    source = tmp_path / "in.jsonl"
    source.write_bytes(good * 20 + b"\n \r\n" + good + line + b"\n" + good * 3)
    for number, shard_bytes in enumerate((1 << 20, 70)):
        directory = tmp_path / str(number)
        with pytest.raises(RequestError, match=rf"in.jsonl:24: {message}") as error:
            make(Plan(source, qwen, shard_bytes=shard_bytes), directory)
        assert "\n" not in str(error.value)
        assert not list(directory.glob("out*"))
        summary = make(Plan(source, qwen, shard_bytes=shard_bytes, skip_bad=True), directory)
        assert (summary["documents"], summary["rejected"]) == (24, 1)
        (rejected,) = read_jsonl(directory / "out_text_document.rejected.jsonl")
        assert rejected["line"] == 24
    assert made(tmp_path / "0") == made(tmp_path / "1")


def test_strange_but_good_lines(qwen: Path, tmp_path: Path) -> None:
    lines = [
        '{"text": "a", "x": NaN}',
        '{"text": "b", "text": "c"}\r',
        '  {"x": "\\ud800", "text": "d"}',
        '{"text": "e"}',
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(lines))  # the last one without a line break
    chunks = list(read_documents(source, document_spans(source, 1 << 20)[0], "text", pytest.fail))
    assert [text for chunk in chunks for text in chunk.documents] == ["a", "c", "d", "e"]


def test_a_line_that_is_too_long_is_set_aside_in_bounded_memory(qwen: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"text": "one"}\n{"text": "' + b"a " * (25 << 20) + b'"}\n{"text": "two"}')
    with pytest.raises(RequestError, match=r"in.jsonl:2: a line of over 32 MiB"):
        make(Plan(source, qwen), tmp_path / "refused")
    for shard_bytes in (1 << 30, 1 << 20):
        directory = tmp_path / str(shard_bytes)
        summary = make(Plan(source, qwen, skip_bad=True, shard_bytes=shard_bytes), directory)
        assert (summary["documents"], summary["rejected"]) == (2, 1)
        (rejected,) = read_jsonl(directory / "out_text_document.rejected.jsonl")
        assert rejected["line"] == 2


@pytest.mark.parametrize("content", [b"", b"\n\n", None])
def test_a_file_without_documents_is_refused(qwen: Path, tmp_path: Path, content: bytes | None) -> None:
    source = tmp_path / "in.jsonl"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(RequestError, match=r"in.jsonl: (no such file|empty|none of its lines)"):
        make(Plan(source, qwen), tmp_path)


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64, 1 << 20])
def test_every_line_is_read_once(tmp_path: Path, chunk_bytes: int) -> None:
    rows = [{"text": "x" * (number % 40)} for number in range(200)]
    source = write(tmp_path / "in.jsonl", rows)
    for size in (1, 13, 50, 1 << 20):
        chunks = [
            chunk
            for span in document_spans(source, size)
            for chunk in read_documents(source, span, "text", pytest.fail, chunk_bytes)
        ]
        assert [text for chunk in chunks for text in chunk.documents] == [row["text"] for row in rows]
        assert sum(chunk.lines for chunk in chunks) == 200
