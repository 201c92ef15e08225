"""Reads logs of any size in constant memory and says of a line what stands before its message: rank, node, time.

`engine` calls it; nothing here knows of causes.
"""

import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK_BYTES = 1 << 16
LINE_BYTES = 4096
"""A longer line is cut in its middle: its head and its tail are kept."""

_HEAD, _TAIL = 3072, 1024
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]{0,40}[ -/]{0,4}[@-~]|\][^\x07\x1b]{0,400}(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Block:
    """Some whole lines of a log, as bytes; `first` is the number of the first, counted from 1."""

    first: int
    data: bytes


def clean(raw: bytes) -> str:
    """A line as text: cut to LINE_BYTES, without terminal escapes and control characters."""
    if len(raw) > LINE_BYTES:
        raw = raw[:_HEAD] + raw[-_TAIL:]
    text = raw.decode("utf-8", errors="replace")
    if "\x1b" in text:
        text = _ESCAPES.sub("", text)
    return _CONTROLS.sub("", text).rstrip()


def blocks(stream: BinaryIO) -> Iterator[Block]:
    """Cut a stream into blocks of whole lines; of a line longer than a block only head and tail are kept."""
    number, rest = 1, b""
    while piece := stream.read(BLOCK_BYTES):
        rest += piece
        end = rest.rfind(b"\n")
        if end >= 0:
            yield Block(number, rest[:end])
            number += rest.count(b"\n", 0, end + 1)
            rest = rest[end + 1 :]
        elif len(rest) > 4 * BLOCK_BYTES:
            rest = rest[:_HEAD] + rest[-BLOCK_BYTES:]
    if rest:
        yield Block(number, rest)


_STAMP = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?"
_STREAM = re.compile(
    r"\[(?:rank|default)?\d{1,5}\]:\s?"  # torchrun: [rank3]: [default5]:
    r"|\d{1,5}:\s"  # srun --label
    r"|\[\d{1,4},\d{1,5}\]<std(?:err|out)>:\s?"  # mpirun --tag-output
    r"|\((?:[A-Za-z_][^()]{0,200}?\s)?pid=\d{1,9}(?:,[^()]{0,80})?\)(?:\s|$)"  # Ray, vLLM
    r"|\((?:EngineCore|Worker|VllmWorker|APIServer|raylet)[^()]{0,80}\)(?:\s|$)"
    r"|[A-Za-z][\w.-]{0,60}/\d{1,4} "  # torchx: role/replica
    r"|(?:worker|node|host|gpu)[\w.-]{0,40}: "  # pdsh, kubectl
)
_DECORATION = re.compile(
    rf"\[?{_STAMP}\]?[:,]?\s{{0,4}}(?:-\s)?"
    r"|(?:CRITICAL|ERROR|WARNING|WARN|INFO|DEBUG)(?::(?=\s)|\s)\s{0,6}(?:\d\d-\d\d \d\d:\d\d:\d\d\s?)?"
    r"|\[(?:CRITICAL|ERROR|WARNING|INFO)\]\s"
    r"|\[?[\w./-]{1,60}\.(?:py|cc|cpp|cu):\d{1,5}\]?:?\s"
    r"|\[[EWF]\d{3,4} \d\d:\d\d:\d\d\.\d{1,9} [^\]]{1,60}\]\s"
    r"|\|\s(?:std(?:err|out)\s\|\s)?"  # ... | ERROR | stderr | message
)


@dataclass(frozen=True)
class Split:
    """A line's parts: who wrote it (`stream`, the labels before the message) and the message itself."""

    stream: str
    body: str


def split(line: str) -> Split:
    """Take the labels of launchers and the decoration of loggers off a line; the message keeps its indentation."""
    stream, start = "", 0
    for _ in range(8):
        if found := _STREAM.match(line, start):
            stream += found.group().rstrip()  # some lines have a space behind the label, some not
        elif not (found := _DECORATION.match(line, start)):
            break
        start = found.end()
    return Split(stream, line[start:])


_RANKS = tuple(
    re.compile(pattern)
    for pattern in (
        r"\[rank ?(\d{1,6})\]",
        r"\bRank (\d{1,6})[\],: ]",
        r"\brank\s{0,4}: (\d{1,6}) \(local_rank",
        r"\bglobal_rank=(\d{1,6})",
        r"^(\d{1,6}): ",
        r"^\[\d{1,4},(\d{1,6})\]<std",
        r"\btasks? (\d{1,6})[:,-]",
        r"\brank[ =:](\d{1,6})\b",
        r"\[default(\d{1,4})\]",
    )
)
_NODES = tuple(
    re.compile(pattern)
    for pattern in (
        r"\bON ([\w.-]{1,80}) CANCELLED",
        r"srun: error: ([\w.-]{1,80}): tasks? ",
        r"Node failure on ([\w.-]{1,80})",
        r"(?:^|\] )([\w.-]{1,80}):\d{1,8}:\d{1,8} \[\d{1,3}\]",
        r"^\[([\w.-]{1,80}):\d{1,8}\] ",
        r"^[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d ([\w.-]{1,80}) kernel:",
        r"\bnode ([\w.-]{1,80}), device",
        r"\bhost(?:name)?\s{0,6}[:=] ?([\w.-]{1,80})",
        r"\b(?:ip=|IP: )(\d{1,3}(?:\.\d{1,3}){3})",
        r"^((?:worker|node|host|gpu)[\w.-]{0,40}): ",
    )
)


def rank_of(line: str) -> int | None:
    """The rank that a line names; None where it names none."""
    for pattern in _RANKS:
        if found := pattern.search(line):
            return int(found.group(1))
    return None


def node_of(line: str) -> str | None:
    """The node (host name or address) that a line names; None where it names none."""
    for pattern in _NODES:
        if found := pattern.search(line):
            return found.group(1)
    return None


_TIMES = (
    re.compile(r"(?P<Y>\d{4})-(?P<m>\d\d)-(?P<d>\d\d)[T ](?P<H>\d\d):(?P<M>\d\d):(?P<S>\d\d)(?:[.,](?P<f>\d{1,9}))?"),
    re.compile(r"\[?[EWIF](?P<m>\d?\d)(?P<d>\d\d) (?P<H>\d\d):(?P<M>\d\d):(?P<S>\d\d)\.(?P<f>\d{1,9})"),
    re.compile(r"(?P<b>[A-Z][a-z]{2}) {1,2}(?P<d>\d{1,2}) (?P<H>\d\d):(?P<M>\d\d):(?P<S>\d\d)(?: (?P<Y>\d{4}))?"),
    re.compile(r"\b(?P<m>\d\d)-(?P<d>\d\d) (?P<H>\d\d):(?P<M>\d\d):(?P<S>\d\d)"),
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def time_of(line: str) -> float | None:
    """The time that a line bears, in seconds since the start of its year; None where it bears none.

    Many loggers write no year and no zone, so the year is left out everywhere.
    """
    for pattern in _TIMES:
        if found := pattern.search(line):
            part = found.groupdict()
            if part.get("b") and part["b"] not in _MONTHS:
                continue
            month = int(part["m"]) if part.get("m") else _MONTHS.index(part["b"]) + 1
            try:
                moment = datetime.datetime(
                    2000, month, int(part["d"]), int(part["H"]), int(part["M"]), int(part["S"]), tzinfo=datetime.UTC
                )
            except ValueError:  # digits that only look like a date
                continue
            return moment.timestamp() - _YEAR_START + float(f"0.{part.get('f') or 0}")
    return None


_YEAR_START = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC).timestamp()
