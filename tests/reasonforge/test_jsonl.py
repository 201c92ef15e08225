"""Rows and errors of jsonl are those of Python's json, whether msgspec is there or not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonforge import jsonl
from reasonforge.errors import RequestError
from reasonforge.files import parse_jsonl

VALUES = [
    b"-0", b"-0.0", b"0", b"-1", b"1e400", b"-1e400", b"1e-400", b"4.9e-324", b"2.4703282292062327e-324",
    b"1.7976931348623159e308", b"1E5", b"1e+05", b"9007199254740993", b"9007199254740993.0", b"18446744073709551616",
    b"-9223372036854775809", b"1" * 400, b"1" * 5000, b"1" * 400 + b".5", b"0.1" + b"0" * 500, b"01", b"1.", b".5",
    b"+1", b"- 1", b"0x1", b"1_0", b"NaN", b"Infinity", b"-Infinity", b"nul", b"true", b"null", b"[1,]", b"[,]", b"[]",
    b"{}", b'{"b":1,"c":2,"b":3}', b"{1:2}", b"{'b':1}", b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\ud83d\\ude00"',
    b'"\\ud83dx"', b'"\\uD83D\\u0041"', b'"\\u00"', b'"\\x41"', b'"\\/"', b'"\\u0000"', b'"\x00"', b'"\x1f"', b'"\x7f"',
    b'"\t"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'"\xf4\x90\x80\x80"', b'"\xff"', b'"\xe2\x80\xa8"', b'"\xc3"', b'"',
    b'"\\', b"",
    b"[" * 500 + b"]" * 500, b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000,
    b"1.00000000000000011102230246251565404236",
]  # fmt: skip
WHOLE = [b"", b" \t", b"\x0c", b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00", b"{\x00}\x00", b"\x00{\x00}", b"{}\x00",
         b"{} x", b"{}{}", b"\x0b{}", b" {}\r", b"[1]", b"1", b"null", b'"x"', b"{}//", b'{"\xff": 1}',
         b'{"\xed\xa0\x80": 1}', b'{"a": 1,}', b'{"a"\n:\r1\t}', b'{"a" 1}', b"{"]  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8)
TREES = st.recursive(
    SCALARS, lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=3), some, max_size=3)
)


@pytest.fixture(scope="module")
def same() -> Callable[[bytes], None]:
    pytest.importorskip("msgspec")
    fast = jsonl.decoder()
    assert fast is not jsonl.nothing

    def outcome(line: bytes, decode: Callable[[bytes], Any]) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jsonl, "_decoder", lambda: decode)
            try:
                return repr(list(parse_jsonl([b"{}", line], Path("x.jsonl"))))  # tells 1 from 1.0, and 0.0 from -0.0
            except RequestError as error:
                return f"error: {error}"

    def check(line: bytes) -> None:
        assert outcome(line, fast) == outcome(line, jsonl.nothing)

    return check


def test_what_decoders_differ_in(same: Callable[[bytes], None]) -> None:
    for line in WHOLE:
        same(line)
    for value in VALUES:
        same(b'{"a": ' + value + b"}")
        same(value)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=3), TREES, max_size=4), st.booleans())
def test_any_row(same: Callable[[bytes], None], row: dict[str, Any], escaped: bool) -> None:
    same(json.dumps(row, ensure_ascii=escaped).encode("utf-8", "surrogatepass"))


@settings(max_examples=600, deadline=None)
@given(
    st.dictionaries(st.text(max_size=3), TREES, max_size=3),
    st.lists(
        st.tuples(st.integers(0, 200), st.integers(0, 3), st.binary(max_size=2) | st.sampled_from(VALUES)), max_size=3
    ),
)
def test_any_damaged_row(
    same: Callable[[bytes], None], row: dict[str, Any], damages: list[tuple[int, int, bytes]]
) -> None:
    line = json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")
    for place, removed, put in damages:
        line = line[:place] + put + line[place + removed :]
    same(line)


@settings(max_examples=300, deadline=None)
@given(st.from_regex(r"\A-?[0-9]{1,25}(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?\Z"))
def test_any_number(same: Callable[[bytes], None], number: str) -> None:
    same(b'{"a": ' + number.encode() + b"}")
