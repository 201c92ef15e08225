import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reasonforge.errors import RequestError
from reasonforge.files import canonical_json, read_json, read_jsonl, sha256_file, write_atomic, write_json, write_jsonl


def test_equal_values_have_one_text() -> None:
    assert canonical_json({"b": 1, "a": [1.5, "é"]}) == canonical_json({"a": [1.5, "é"], "b": 1})
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical_json({"x": value})


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"a": 1}
        raise OSError("the disk is full")

    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"old": 1}])
    with pytest.raises(OSError, match="the disk is full"):
        write_jsonl(path, rows())
    assert list(read_jsonl(path)) == [{"old": 1}]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_jsonl(path, [{"a": math.nan}])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": math.nan})
    assert list(read_jsonl(path)) == [{"old": 1}]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rows = [{"text": 'é\u2028\x00 \\ " 日本', "n": 1.5}, {}, {"z": [None, True], "a": {"b": 1}}]
    assert write_jsonl(tmp_path / "new" / "rows.jsonl", iter(rows)) == 3
    assert list(read_jsonl(tmp_path / "new" / "rows.jsonl")) == rows
    assert list(list(read_jsonl(tmp_path / "new" / "rows.jsonl"))[2]) == ["z", "a"]
    write_json(tmp_path / "new" / "one.json", rows)
    assert read_json(tmp_path / "new" / "one.json") == rows
    write_atomic(tmp_path / "bytes", b"\xff")
    assert (tmp_path / "bytes").read_bytes() == b"\xff"
    assert sha256_file(tmp_path / "bytes") == "a8100ae6aa1940d0b663bb31cd466142ebbdbd5187131b92d93818987832eb89"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"a": 1}\n\n{"a": }\n', ":3: not JSON at column 7: Expecting value; a jsonl file holds one JSON object"),
        (b'{"a": 1}\n[1]\n', ":2: found a JSON list; a jsonl file holds one JSON object on each line"),
        (b'"x"\n', ":1: found a JSON str; a jsonl file holds one JSON object on each line"),
        (b'{"a": 1}\n{"a": "\xff"}\n', ":2: not UTF-8 at byte 7 of the line"),
        (b'{"a": 1}\n{"a": "cut o', ":2: not JSON at column 7: Unterminated string"),
        (b'{"a": 1}{"a": 2}\n', ":1: not JSON at column 9: Extra data"),
    ],
)
def test_a_corrupt_line_is_named(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(RequestError) as caught:
        list(read_jsonl(path))
    assert str(caught.value).startswith(f"{path}{line}")


def test_blank_lines_and_a_missing_last_newline_are_no_matter(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('\n{"a": 1}\r\n  \n{"a": 2}')
    assert [row["a"] for row in read_jsonl(tmp_path / "rows.jsonl")] == [1, 2]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"a":\n 1 2}', ":2: not JSON: Expecting ',' delimiter"),
        (b'{"a": "\xff"}', ": not JSON: not UTF-8 at byte 7"),
        (b"", ":1: not JSON: Expecting value"),
    ],
)
def test_bad_json_is_one_line(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(RequestError) as caught:
        read_json(path)
    said = str(caught.value)
    assert said.startswith(f"{path}{line}")
    with pytest.raises(RequestError, match="no such file"):
        read_json(tmp_path / "absent.json")
