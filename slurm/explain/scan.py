"""Looks for the rules in one log, in one pass and constant memory, and reads Python tracebacks as what they are.

`engine` scans each log with it and weighs what was found. Text that holds none of the rules' words is skipped by
blocks, so that gigabytes of progress cost little.
"""

import io
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from slurm.explain.lines import LINE_BYTES, Split, blocks, clean, node_of, rank_of, split, time_of
from slurm.explain.patterns import any_word
from slurm.explain.rules import Rule

KEPT_PER_RULE = 3
"""Findings of one rule that are kept of one episode of a log."""

EPISODE_GAP = 2000
"""Lines without a finding after which a log goes on to a new episode: the work had survived what came before."""

KEPT_EPISODES = 3
_STREAMS = 2048
_SHAPES = 4096
_TRACEBACK_PATIENCE = 200
"""Lines after a traceback's last frame within which its exception still belongs to it."""
_TRACEBACK_LINES = 20
_LOOK_BACK = 30
_OWN_WORDS = ('file "', "error", "exception", "traceback (most recent", "reasonforge: stage ")

_CHANGING = re.compile(  # begins with one class, which lets the engine skip what cannot match
    rb"\d(?:\d{0,19}\.\d{1,20}(?:[eE][+-]?\d{1,4})?|\d{3,19}|\d:\d\d(?::\d\d)?|x[0-9a-f]{4,16})"
)
_ATTEMPT = re.compile(r"reasonforge: stage (?P<stage>.{1,200}), attempt (?P<number>\d{1,9})$")
"""What a stage prints at the start of each attempt (recipes/run_stage.py)."""
_FRAME = re.compile(r'[\s|+]{0,16}File "(?P<file>[^"]{1,300})", line (?P<line>\d{1,9})')
_OTHER_FRAME = re.compile(
    r"[│|]\s{1,4}(?P<file>[~/][^\s:]{1,300}\.py):(?P<line>\d{1,9}) in ?(?P<name>[^│|]{0,200})"  # rich
    r"|(?:File )?(?P<file2>[~/][^\s:]{1,300}\.py)(?::(?P<line2>\d{1,9}),)? in "  # IPython
    r"(?P<name2>[^(]{1,200}\(.{0,300}\)|<.{1,40}>)$"
)
"""A frame as rich and IPython print it; rules see it as Python's own."""
_RAISED = re.compile(
    r"[\s|+]{0,16}(?P<path>(?:[A-Za-z_]\w{0,60}\.){0,9})(?P<type>[A-Za-z_]\w{2,60})"
    r"(?P<of>\([A-Za-z_][\w.]{0,80}\))?(?P<rest>: .{0,4000}|:?\s{0,4}$)"
)
_TYPE = re.compile(r"(?:Error|Exception|Interrupt|Exit|Died|Timeout|OOM)$|^[A-Z]\w{0,60}(?:Error|Exception)\w{0,20}$")
_IN_CODE = (" ", "\t", "|", "│", "╭", "-")
"""What a line below a frame begins with: code, carets, a box, IPython's arrow."""
_IGNORED = re.compile(r"Exception ignored in|--- Logging error ---")


@dataclass(frozen=True)
class Finding:
    """One line that speaks for a cause."""

    rule: Rule
    source: str
    """The log's name."""
    line: int
    text: str
    time: float | None
    """Seconds since the start of the year, where the line or one shortly before it says."""
    rank: int | None
    node: str | None
    code: str | None
    """`file.py:line` that raised, for an exception."""
    episode: int = 0


@dataclass
class _Stream:
    """What is open in the output of one writer (rank, worker) of a log."""

    frames: deque[str] = field(default_factory=lambda: deque(maxlen=_TRACEBACK_LINES))
    place: str | None = None
    in_code: bool = False
    ignored: bool = False


class Scanner:
    """Finds a table's rules in logs."""

    def __init__(self, rules: Iterable[Rule]):
        self._rules = list(rules)
        self._places = {rule.name: place for place, rule in enumerate(self._rules)}
        self._of_exceptions = [rule for rule in self._rules if rule.within == "exception"]
        in_lines = [rule for rule in self._rules if rule.within == "line"]
        self._always = [rule for rule in in_lines if not rule.words]
        self._by_word: dict[str, list[Rule]] = {}
        starts = _shortest_starts({word for rule in in_lines for word in rule.words})
        for rule in in_lines:
            for start in sorted({starts[word] for word in rule.words}):
                self._by_word.setdefault(start, []).append(rule)
        gate = any_word({*starts.values(), *_OWN_WORDS})
        self._gate = None if self._always else gate
        self._words_of = re.compile(f"(?=({any_word(starts.values()).pattern.decode()}))") if starts else None

    def scan_text(self, text: str, name: str = "text") -> list[Finding]:
        """The findings in a text."""
        return self.scan(io.BytesIO(text.encode("utf-8", errors="replace")), name)

    def scan(self, log: BinaryIO, name: str, rank: int | None = None, node: str | None = None) -> list[Finding]:
        """The findings in a log, in order; of many alike, the first few of each episode.

        Args:
            rank, node: whose log it is, for lines that do not say.
        """
        return _LogScan(self, name, rank, node).run(log)

    def place(self, rule: Rule) -> int:
        """Where a rule stands in the table."""
        return self._places[rule.name]

    def may_hold(self, lines: bytes) -> bool:
        """Whether a rule or a traceback could be in some lines."""
        return self._gate is None or self._gate.search(lines.lower()) is not None

    def in_line(self, line: str) -> Iterator[Rule]:
        """The rules of lines that match a line, as they stand in the table."""
        tried: set[str] = set()
        candidates = list(self._always)
        if self._words_of is not None:
            for start in {found.group(1) for found in self._words_of.finditer(line.lower())}:
                candidates += [rule for rule in self._by_word[start] if rule.name not in tried]
                tried.update(rule.name for rule in self._by_word[start])
        for rule in sorted(candidates, key=lambda rule: self._places[rule.name]):
            if any(pattern.search(line) for pattern in rule.compiled):
                yield rule

    def in_exception(self, text: str, frames: str) -> Iterator[Rule]:
        """The rules of exceptions that match `Type: message` with the traceback's lines above it."""
        for rule in self._of_exceptions:
            if any(pattern.search(text) for pattern in rule.compiled) and (
                rule.compiled_frames is None or rule.compiled_frames.search(frames)
            ):
                yield rule


def _shortest_starts(words: set[str]) -> dict[str, str]:
    """For each word the shortest of the words that it begins with."""
    return {word: next(word[:length] for length in range(1, len(word) + 1) if word[:length] in words) for word in words}


class _LogScan:
    """The state of reading one log."""

    def __init__(self, scanner: Scanner, name: str, rank: int | None, node: str | None):
        self._scanner, self._name, self._rank, self._node = scanner, name, rank, node
        self._streams: dict[str, _Stream] = {}
        self._recent: list[bytes] = []
        """The last lines of the block before, for `_time`."""
        self._lines: list[bytes] = []
        self._at = 0
        self._episodes: dict[int, dict[str, list[Finding]]] = {0: {}}
        self._episode, self._last_line = 0, 0
        self._last_frame = -_TRACEBACK_PATIENCE
        self._attempt: tuple[str, str] | None = None
        self._dull: dict[bytes, None] = {}

    def run(self, log: BinaryIO) -> list[Finding]:
        for block in blocks(log):
            self._lines = block.data.split(b"\n")
            shapes = _CHANGING.sub(b"0", block.data).split(b"\n")
            fresh = {shape: raw for shape, raw in zip(shapes, self._lines, strict=True) if shape not in self._dull}
            near_traceback = block.first - self._last_frame < _TRACEBACK_PATIENCE
            if near_traceback or self._scanner.may_hold(b"\n".join(fresh.values())):
                self._read_lines(block.first, shapes)
            else:  # a traceback's lines hold words of ours, so none goes on from here
                self._streams.clear()
                for shape in fresh:
                    self._learn(shape)
            self._recent = self._lines[-_LOOK_BACK:]
        found = [item for rules in self._episodes.values() for items in rules.values() for item in items]
        return sorted(found, key=lambda item: (item.line, self._scanner.place(item.rule)))

    def _read_lines(self, first: int, shapes: list[bytes]) -> None:
        """Read the lines of a block but those that differ only in numbers from one that was read and said nothing."""
        for self._at, shape in enumerate(shapes):
            number = first + self._at
            near_traceback = number - self._last_frame < _TRACEBACK_PATIENCE
            if shape in self._dull and not near_traceback:
                continue
            raw = self._lines[self._at]
            if b"\r" not in raw:
                self._read_part(number, raw, shape)
                continue
            for part, its_shape in zip(raw.split(b"\r"), shape.split(b"\r"), strict=True):  # states of a progress bar
                if its_shape not in self._dull or near_traceback:
                    self._read_part(number, part, its_shape)

    def _read_part(self, number: int, raw: bytes, shape: bytes) -> None:
        if raw and not raw.isspace() and self._read(number, clean(raw)):
            return
        self._learn(shape)

    def _learn(self, shape: bytes) -> None:
        """Remember that lines of this shape say nothing."""
        if len(shape) <= LINE_BYTES:
            if len(self._dull) >= _SHAPES:
                self._dull.pop(next(iter(self._dull)))
            self._dull[shape] = None

    def _read(self, number: int, line: str) -> bool:
        """Whether the line said anything: a rule found it, or it belongs to a traceback."""
        parts = split(line)
        stream = self._stream(parts)
        if _IGNORED.search(line):
            stream.ignored = True
            return True
        if attempt := _ATTEMPT.search(line):
            self._start_attempt((attempt["stage"], attempt["number"]))
            return True
        if frame := _frame(parts.body):
            stream.place, stream.in_code, self._last_frame = frame[0], True, number
            stream.frames.append(frame[1][:400])
            return True
        if stream.in_code and (not parts.body or parts.body.startswith(_IN_CODE)):
            stream.frames.append(parts.body.strip("│")[:400])
            return True
        stream.in_code = False
        code: str | None = None
        rules: list[Rule] = []
        raised = _raised(parts.body, bool(stream.frames))
        if raised and stream.ignored:
            self._streams[parts.stream] = _Stream()
            return True
        if raised:
            code = stream.place
            rules = _without_nothing(self._scanner.in_exception(raised, "\n".join(stream.frames)))
            self._streams[parts.stream] = _Stream()
        in_line = [rule for rule in self._scanner.in_line(line) if not self._is_undone(rule)]
        if all(rule.cause != "nothing" for rule in in_line):
            for rule in [*rules, *in_line]:
                self._keep(rule, number, line, code)
        return bool(rules or in_line or raised)

    def _start_attempt(self, attempt: tuple[str, str]) -> None:
        """Forget what was found before: it did not end this attempt. Other ranks of the same attempt change nothing."""
        if attempt != self._attempt:
            self._attempt = attempt
            self._streams.clear()
            self._episodes, self._episode, self._last_line = {0: {}}, 0, 0
            self._last_frame = -_TRACEBACK_PATIENCE

    def _stream(self, parts: Split) -> _Stream:
        stream = self._streams.get(parts.stream)
        if stream is None:
            if len(self._streams) >= _STREAMS:
                self._streams.pop(next(iter(self._streams)))
            stream = self._streams[parts.stream] = _Stream()
        return stream

    def _keep(self, rule: Rule, number: int, line: str, code: str | None) -> None:
        if rule.strength in ("proof", "sign"):
            if self._last_line and number - self._last_line > EPISODE_GAP:
                self._episode += 1
                self._episodes.pop(self._episode - KEPT_EPISODES, None)
            self._last_line = number
        kept = self._episodes.setdefault(self._episode, {}).setdefault(rule.name, [])
        if len(kept) < KEPT_PER_RULE:
            rank, node = rank_of(line), node_of(line)
            kept.append(
                Finding(
                    rule,
                    self._name,
                    number,
                    line,
                    self._time(line),
                    self._rank if rank is None else rank,
                    node or self._node,
                    code,
                    self._episode,
                )
            )

    def _is_undone(self, rule: Rule) -> bool:
        """Whether a line above says that this one means nothing."""
        undoes = rule.compiled_unless_above
        return undoes is not None and any(undoes.search(clean(raw)) for raw in self._above())

    def _time(self, line: str) -> float | None:
        if (found := time_of(line)) is not None:
            return found
        for raw in reversed(self._above()):
            if (found := time_of(clean(raw))) is not None:
                return found
        return None

    def _above(self) -> list[bytes]:
        """The last lines above the one that is read."""
        above = [*self._recent, *self._lines[max(0, self._at - _LOOK_BACK) : self._at]]
        return above[-_LOOK_BACK:]


def _without_nothing(rules: Iterable[Rule]) -> list[Rule]:
    """The rules; none at all where one of them says that it is nothing."""
    found = list(rules)
    return [] if any(rule.cause == "nothing" for rule in found) else found


def _frame(body: str) -> tuple[str, str] | None:
    """`file.py:line` of a line that names a frame of a traceback, and the line as Python writes it."""
    if found := _FRAME.match(body):
        return f"{found['file']}:{found['line']}", body
    if not (found := _OTHER_FRAME.match(body)):
        return None
    file, line = found["file"] or found["file2"], found["line"] or found["line2"] or "0"
    name = (found["name"] or found["name2"] or "").split("(")[0].strip()
    return f"{file}:{line}", f'  File "{file}", line {line}, in {name}'


def _raised(body: str, after_frames: bool) -> str | None:
    """`Type: message` of a line that ends a traceback, the type without its module; None for another line."""
    found = _RAISED.match(body)
    if not found or found["type"].endswith("Warning"):
        return None
    known = _TYPE.search(found["type"]) is not None
    if not known and not (after_frames and (found["path"] or found["type"][0].isupper())):
        return None
    message = found["rest"].removeprefix(":").strip()
    return f"{found['type']}{found['of'] or ''}: {message}"
