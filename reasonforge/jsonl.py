"""One line of a jsonl file as its row, or what is wrong with it: strict UTF-8, one JSON object, no half characters.

All that reads jsonl goes through here: `reasonforge.files`, `lines` and `documents` of `data_prep.sources`. msgspec,
where it is installed, is only faster: rows and errors are those of Python's `json`.
"""

import functools
import importlib
import json
import re
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Decode = Callable[[bytes], Any]

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_ONE_OBJECT = "a jsonl file holds one JSON object on each line"
_BOM = b"\xef\xbb\xbf"


class BadRow(ValueError):  # noqa: N818 (what it is, more than what went wrong)
    """A line or row that cannot be used.

    Args:
        kind: what is wrong in a few words without figures, since bad rows are counted by it.
        problem: the same for people, with the place in the line; by default the kind itself.
        remedy: what would be right.
    """

    def __init__(self, kind: str, problem: str = "", remedy: str = ""):
        super().__init__(problem or kind)
        self.kind, self.remedy = kind, remedy


def parse_row(line: bytes) -> Row:
    """The row of a line. NaN, the infinities and numbers too large for a float become null, as JSON has none of them.

    msgspec decodes what it takes, which is part of what `json` takes, to equal values; only of brackets within brackets
    it may take three more than the thousand or so at which `json` stops. Raises BadRow.
    """
    try:
        row = _decoder()(line)
    except (ValueError, RecursionError):  # msgspec's own errors are ValueErrors
        row = None
    return row if isinstance(row, dict) else explained_row(line)


def explained_row(line: bytes, *, halves: bool = False) -> Row:
    """As `parse_row`, by Python's `json`: it knows NaN and much else that is rare, and says where the fault is.

    Args:
        halves: leave lone surrogates in the texts, for a caller that looks at some of the columns only.
    """
    try:
        row = _PYTHON.decode(str(line.rstrip(b"\r\n"), "utf-8"))
    except UnicodeDecodeError as error:
        raise BadRow("not UTF-8", f"not UTF-8 at byte {error.start} of the line") from None
    except json.JSONDecodeError as error:
        raise _not_json(line, error) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise BadRow("not JSON", f"not JSON that can be read ({type(error).__name__})") from None
    if not isinstance(row, dict):
        raise BadRow("no JSON object", f"found a JSON {type(row).__name__}", _ONE_OBJECT)
    if not halves and _SURROGATE.search(line):
        _check_encodable(row)
    return row


def decoder(columns: type | None = None) -> Decode:
    """msgspec's decoder, of a type of its own or of anything; it raises ValueError for all that is unusual.

    Without msgspec everything is unusual, and so left to `explained_row`.
    """
    try:
        msgspec: Any = importlib.import_module("msgspec.json")
    except ImportError:
        return nothing
    decode: Decode = (msgspec.Decoder() if columns is None else msgspec.Decoder(columns)).decode
    return decode


def nothing(line: bytes) -> Any:
    """A decoder to which every line is unusual."""
    raise ValueError(line[:1])


_decoder = functools.cache(decoder)


def _not_json(line: bytes, error: json.JSONDecodeError) -> BadRow:
    where = f"not JSON at column {error.colno}"
    if line.startswith(_BOM):
        return BadRow("a byte order mark", f"{where}: Unexpected UTF-8 BOM", "save it as UTF-8 without the mark")
    if b"\0" in line:
        return BadRow("a NUL byte", f"{where}: {error.msg}: a NUL byte", _ONE_OBJECT)
    return BadRow("not JSON", f"{where}: {error.msg}", _ONE_OBJECT)


def _check_encodable(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRow("a lone surrogate", "a lone surrogate, half of a character that UTF-8 cannot write") from None


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if abs(number) != float("inf") else None


_PYTHON = json.JSONDecoder(parse_constant=lambda _: None, parse_float=_finite)
