import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.sources import lines
from data_prep.sources.lines import check_columns, count_lines, line_before, lines_of, parse_line, spans
from reasonforge.jsonl import BadRow

LINES = st.lists(st.sampled_from([b"", b"  ", b'{"a": 1}', b'{"long": "' + b"x" * 90 + b'"}', b"no row"]), max_size=30)


@settings(max_examples=200, deadline=None)
@given(LINES, st.integers(1, 200), st.booleans())
def test_any_cut_gives_each_line_once(texts: list[bytes], size: int, ended: bool) -> None:
    data = b"\n".join(texts) + (b"\n" if texts and ended else b"")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.jsonl"
        path.write_bytes(data)
        whole = [(line.start, repr(line.row)) for line in lines_of(path)]
        cut = spans(path, size)
        assert [(line.start, repr(line.row)) for span in cut for line in lines_of(path, span)] == whole
        assert sum(count_lines(path, span) for span in cut) == len(data.splitlines())
        position, found = len(data), []
        while before := line_before(path, position):
            position, text = before
            found.append(text)
        assert b"".join(reversed(found)) == data


def test_numbers_are_those_of_the_file() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.jsonl"
        path.write_bytes(b'{"a": 1}\n\n{"a": 2}\nbad\n')
        assert [line.number for line in lines_of(path)] == [1, 3, 4]
        assert [line.number for line in lines_of(path, (9, path.stat().st_size))] == [2, 3]


@pytest.mark.parametrize(
    ("line", "kind", "problem"),
    [
        (b'{"a": 1', "not JSON", "not JSON at column 8"),
        (b'{"a": "\xff"}', "not UTF-8", "not UTF-8 at byte 7 of the line"),
        (b'{"a": "x\0"}', "a NUL byte", "Invalid control character at: a NUL byte"),
        (b"\0\0\0", "a NUL byte", "a NUL byte"),
        (b"[1]", "no JSON object", "found a JSON list"),
        (b"null", "no JSON object", "found a JSON NoneType"),
        (b'{"a": "\\ud800"}', "a lone surrogate", "half of a character that UTF-8 cannot write"),
        (b'{"a": ["\\uDFFF"]}', "a lone surrogate", "a lone surrogate"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON", "not JSON that can be read (ValueError)"),
        (b"[" * 100_000, "not JSON", "not JSON that can be read (RecursionError)"),
    ],
)
def test_what_is_wrong_with_a_line(line: bytes, kind: str, problem: str) -> None:
    with pytest.raises(BadRow) as caught:
        parse_line(line)
    assert caught.value.kind == kind
    assert problem in str(caught.value)


def test_what_is_unusual_but_right() -> None:
    assert parse_line(b'{"a": "\\ud83d\\ude00", "b": NaN, "c": -Infinity, "d": 1e999, "e": 1.5}\r\n') == {
        "a": "😀", "b": None, "c": None, "d": None, "e": 1.5
    }  # fmt: skip


def test_a_line_that_is_too_long_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_BYTES", 1000)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 64)
    path = tmp_path / "rows.jsonl"
    long = json.dumps({"a": "x" * 5000}).encode()
    path.write_bytes(b'{"a": 1}\n' + long + b'\n{"a": 2}\n' + long)
    found = list(lines_of(path))
    assert [line.number for line in found] == [1, 2, 3, 4]
    assert [line.row for line in found[::2]] == [{"a": 1}, {"a": 2}]
    for line in found[1::2]:
        assert isinstance(line.row, BadRow)
        assert "a line of over" in str(line.row)
        assert line.head == long[:200].decode()


def test_columns() -> None:
    check_columns({"a": "x"}, ["a"])
    for row, told in (({"b": "x"}, "no column 'a'"), ({"a": None}, "'a' is no text"), ({"a": 1}, "'a' is no text")):
        with pytest.raises(BadRow, match=told):
            check_columns(row, ["a"])
