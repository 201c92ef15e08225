"""Rows from files of all kinds and from the Hub: a server on this machine that speaks its API, read by `datasets`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import serve

from data_prep.sources.hub import HubName, parse_hub
from data_prep.sources.rows import copy_rows, has_ids, pick
from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl, write_jsonl
from reasonforge.jsonl import BadRow

FIRST, SECOND = "a" * 40, "b" * 40
CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train.jsonl}
  - {split: test, path: data/test.jsonl}
- config_name: hard
  data_files:
  - {split: train, path: hard/*.jsonl}
---
"""
READ = """
import json, sys
from pathlib import Path
from data_prep.sources.hub import commit_of
from data_prep.sources.rows import read_rows
from reasonforge.errors import RequestError

for source in sys.argv[1:]:
    try:
        rows = list(read_rows(Path(source)))
        print(json.dumps({"rows": rows, "commit": commit_of(source)}))
    except RequestError as error:
        print(json.dumps({"error": str(error)}))
"""
MAKE = f"""
import json, sys
from pathlib import Path
from data_prep.sources.problems import FileSource
from data_prep.sources.traces import FileTraces

out = Path(sys.argv[1])
out.mkdir()
tests = "hub:acme/sums?split=test&revision={FIRST}"
source = FileSource(path="hub:acme/sums", prompt_column="question", eval_path=tests)
columns = {{"prompt": "question", "response": "answer"}}
traces = FileTraces(paths=["hub:acme/sums?revision={FIRST}"], columns=columns)
problems, counts = source.make(0), traces.write(out, out)
print(json.dumps({{"problems": problems.counts, "traces": counts}}))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = tmp_path_factory.mktemp("hub")
    for commit, shift in ((FIRST, 0), (SECOND, 100)):
        files = root / "acme/sums" / commit
        for part in ("data", "hard"):
            (files / part).mkdir(parents=True)
        (files / "README.md").write_text(CARD)
        write_jsonl(files / "data/train.jsonl", (row(number + shift) for number in range(700)))
        write_jsonl(files / "data/test.jsonl", (row(number + shift) for number in range(5)))
        write_jsonl(files / "hard/a.jsonl", (row(number + shift) for number in range(1000, 1010)))
    (root / "acme/tables" / SECOND / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row(5)]), root / "acme/tables" / SECOND / "data/train-00000-of-00001.parquet")
    (root / "acme/empty" / SECOND).mkdir(parents=True)
    (root / "acme/empty" / SECOND / "train.jsonl").touch()
    for name in ("sums", "tables", "empty"):
        (root / "acme" / name / "branches").mkdir()
        (root / "acme" / name / "branches/main").write_text(SECOND)
    with serve(root) as found:
        yield found


def row(number: int) -> dict[str, str]:
    return {"question": f"{number}+1?", "answer": str(number + 1)}


def read(home: Path, address: str, *sources: str, script: str = READ, **environment: str) -> list[dict[str, Any]]:
    """Each source read in one process of its own, as the Hub's clients look at their environment only once."""
    variables = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": address, "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *sources],
        env={**variables, **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_hub_by_name_split_config_and_revision(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = hub
    names = ("", "?split=test", "?config=hard", f"?revision={FIRST}", "?split=test&streaming=true")
    sources = [*(f"hub:acme/sums{name}" for name in names), "hub:acme/tables"]
    main, test, hard, pinned, streamed, table = read(tmp_path, address, *sources)
    assert main == {"rows": [row(number) for number in range(100, 800)], "commit": SECOND}
    assert test["rows"] == streamed["rows"] == [row(number) for number in range(100, 105)]
    assert hard["rows"] == [row(number) for number in range(1100, 1110)]
    assert table == {"rows": [row(5)], "commit": SECOND}
    assert pinned == {"rows": [row(number) for number in range(700)], "commit": FIRST}
    told = len(asked)
    sources = [f"hub:acme/sums?revision={SECOND}", f"hub:acme/sums?revision={FIRST}", "hub:acme/sums?config=hard"]
    other = [f"hub:acme/sums?revision={'c' * 40}", "hub:acme/sums?revision=v1"]
    *offline, gone, tag = read(tmp_path, address, *sources, *other, HF_HUB_OFFLINE="1")
    assert offline == [main, pinned, hard]  # from the cache, and nobody was asked
    assert "not in the local cache, and HF_HUB_OFFLINE is set" in gone["error"]
    assert "not in the local cache" in tag["error"]
    assert len(asked) == told


def test_problems_and_traces_from_the_hub_say_their_commit(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, _ = hub
    (found,) = read(tmp_path, address, str(tmp_path / "out"), script=MAKE)
    assert found["problems"]["commit_of_hub:acme/sums"] == SECOND
    assert (found["problems"]["train"], found["problems"]["eval"]) == (700, 5)
    assert found["traces"] == {"problems": 700, "samples": 700, "finished_None": 700,
                               f"commit_of_hub:acme/sums?revision={FIRST}": FIRST}  # fmt: skip


def test_what_the_hub_does_not_have_is_one_line(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, _ = hub
    sources = ["hub:acme/nothing", "hub:acme/sums?split=trian", "hub:acme/sums?config=no",
               f"hub:acme/sums?revision={'c' * 40}", "hub:a b", "hub:acme/sums?spilt=test",
               "hub:acme/empty"]  # fmt: skip
    errors = [str(found["error"]) for found in read(tmp_path, address, *sources)]
    for source, error in zip(sources, errors, strict=True):
        assert error.startswith(f"{source}: ")
        assert "\n" not in error
    assert "did you mean 'train'?" in errors[1]
    assert "did you mean 'split'?" in errors[5]
    (gone,) = read(tmp_path / "empty", "http://127.0.0.1:9", "hub:acme/sums", HF_HUB_OFFLINE="1")
    assert gone["error"].startswith("hub:acme/sums: not in the local cache, and HF_HUB_OFFLINE is set; fetch it once")


def test_names() -> None:
    assert parse_hub("hub:acme/sums?split=test&revision=v1") == HubName("acme/sums", split="test", revision="v1")
    assert parse_hub(Path("hub:gsm8k")) == HubName("gsm8k")
    assert not parse_hub("hub:a/b?revision=main").pinned
    assert parse_hub(f"hub:a/b?revision={FIRST}").pinned
    with pytest.raises(RequestError, match="streaming is 'yes'"):
        parse_hub("hub:a/b?streaming=yes")


def test_a_dotted_name_goes_into_a_value() -> None:
    found = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "a.b": 1}
    assert pick(found, "messages.0.content", needed=True) == "q"
    assert pick(found, "messages.-1.content", needed=True) == "a"
    assert pick(found, "a.b", needed=True) == 1
    assert pick(found, "messages.2.content", needed=False) is None
    assert pick(found, None, needed=True) is None
    with pytest.raises(BadRow, match=r"no column 'messages\.2\.content'"):
        pick(found, "messages.2.content", needed=True)


def test_a_copy_has_our_columns_and_ids(tmp_path: Path) -> None:
    source = tmp_path / "theirs.jsonl"
    write_jsonl(source, [{"q": "one", "n": 1}, {"q": "two", "id": 7}])
    assert not has_ids(source)
    assert copy_rows(source, {"prompt": "q"}, tmp_path / "ours.jsonl") == 2
    rows = [{"n": 1, "prompt": "one", "id": "1"}, {"id": "7", "prompt": "two"}]
    assert list(read_jsonl(tmp_path / "ours.jsonl")) == rows
    assert has_ids(tmp_path / "ours.jsonl")
    with pytest.raises(RequestError, match=r"theirs\.jsonl:2: no column 'n'"):
        copy_rows(source, {"prompt": "n"}, tmp_path / "other.jsonl")
    assert not (tmp_path / "other.jsonl").exists()
