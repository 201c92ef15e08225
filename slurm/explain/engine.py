"""Names the root cause of a failure from its logs and facts: the pure function `explain`, for the CLI and for healing.

What the table's rules find in the logs are candidates; a cause that another one seen brings about is a cascade and
steps back, then the strongest and earliest is the root. Where nothing is found, the answer is `unknown`.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, get_args

from slurm.explain.rules import Cause, Table
from slurm.explain.scan import EPISODE_GAP, Finding, Scanner

CAUSES: tuple[Cause, ...] = get_args(Cause)
LINES_SHOWN = 5
LONGEST_SHOWN = 600
UNKNOWN_REMEDY = (
    "No rule knows these lines. Read the end of the log; a rule of your own can name it next time (--rules)."
)

_STRENGTH = {"guess": 1, "hint": 2, "sign": 3, "proof": 4}
_CONFIDENCE = {0: 0.2, 1: 0.3, 2: 0.5, 3: 0.75, 4: 0.95}
_SIGN = _STRENGTH["sign"]
_TOO_LATE_S = 120.0


@dataclass(frozen=True)
class Log:
    """A log to read: its name for people, how to open it, and whose it is where that is known from outside."""

    name: str
    open: Callable[[], BinaryIO]
    rank: int | None = None
    node: str | None = None


@dataclass(frozen=True)
class Facts:
    """What is known of a job besides its logs; every field may be left empty.

    `state`, `exit_code` ("1:0"), `reason` and `nodes` are sacct's State, ExitCode, Reason and NodeList. `words` are
    other sentences about the failure: events, a launcher's message.
    """

    state: str = ""
    exit_code: str = ""
    reason: str = ""
    nodes: str = ""
    words: tuple[str, ...] = ()

    def text(self) -> str:
        """The facts as lines that the table's rules can read: `sacct: State=... ExitCode=...`."""
        known = {"State": self.state, "ExitCode": self.exit_code, "Reason": self.reason, "NodeList": self.nodes}
        fields = " ".join(f"{key}={value}" for key, value in known.items() if value)
        return "\n".join([*([f"sacct: {fields}"] if fields else []), *(f"event: {word}" for word in self.words)])


@dataclass(frozen=True)
class Where:
    """Where the root cause showed: log and line, and node, rank and line of code where known."""

    log: str
    line: int
    node: str | None
    rank: int | None
    code: str | None


@dataclass(frozen=True)
class Diagnosis:
    """Why a job failed."""

    cause: Cause
    where: Where | None
    lines: tuple[str, ...]
    """The lines that show it, as they stand in the log, shortened."""
    remedy: str
    confidence: float
    """0 to 1: 0.95 a line that says the cause, 0.75 a usual sign, 0.5 a hint, 0.3 a guess, 0 unknown; less where
    others compete."""
    cascade: tuple[Cause, ...]
    """Other causes that the logs show: what followed from this one, or is less likely."""


def log_of_text(text: str, name: str = "text", rank: int | None = None, node: str | None = None) -> Log:
    """A log of a text at hand."""
    return Log(name, lambda: io.BytesIO(text.encode("utf-8", errors="replace")), rank, node)


def explain(table: Table, logs: Sequence[Log], facts: Sequence[Facts] = ()) -> Diagnosis:
    """The root cause that logs and facts show.

    Args:
        table: causes and rules, see `table.read_table`.
        logs: the logs of all ranks of one attempt, in any order.
        facts: sacct's records, events.
    """
    scanner = Scanner(table.rules)
    found: list[Finding] = []
    for log in logs:
        with log.open() as stream:
            found += scanner.scan(stream, log.name, log.rank, log.node)
    for number, fact in enumerate(facts, start=1):
        found += scanner.scan_text(fact.text(), f"facts {number}")
    return weigh(table, found)


@dataclass(frozen=True)
class _Candidate:
    """A cause with its strongest, then earliest finding."""

    cause: Cause
    strength: int
    first: Finding
    place: int
    """Its place in the order of all findings."""


def weigh(table: Table, found: Sequence[Finding]) -> Diagnosis:
    """The root cause among findings; `explain` reads them from logs."""
    ordered = _in_order(found)
    survived = _survived(ordered)
    candidates = _candidates(ordered, survived)
    if not candidates:
        return Diagnosis("unknown", None, (), UNKNOWN_REMEDY, 0.0, ())
    roots = [item for item in candidates if not any(_explains(table, other, item) for other in candidates)]
    best = min(roots or candidates, key=lambda item: (-item.strength, item.place))
    rivals = sum(item.strength == best.strength for item in roots) - 1
    rule, first = best.first.rule, best.first
    return Diagnosis(
        best.cause,
        Where(first.source, first.line, first.node, first.rank, first.code),
        _evidence(first, [item for item in ordered if item.rule.cause == best.cause]),
        rule.remedy or (table.causes[best.cause].remedy if best.cause in table.causes else ""),
        round(_CONFIDENCE[best.strength] * (0.85 if rivals > 0 else 1.0), 2),
        tuple(
            item.cause
            for item in sorted(candidates, key=lambda item: item.place)
            if item is not best
            and item.strength >= _SIGN
            and (item.first.source, item.first.line) != (first.source, first.line)
        ),
    )


def _in_order(found: Sequence[Finding]) -> list[Finding]:
    """All findings, earliest first: by time where every one bears it, else log by log as they stand."""
    indexed = list(enumerate(found))
    timed = [item for item in found if item.time is not None]
    if len({item.source for item in found}) > 1 and timed:
        # a finding without a time stands with the timed one before it in its log
        times: dict[str, float] = {}
        keyed = []
        for index, item in indexed:
            moment = item.time if item.time is not None else times.get(item.source, float("inf"))
            times[item.source] = moment
            keyed.append((moment, index, item))
        return [item for _, _, item in sorted(keyed, key=lambda entry: entry[:2])]
    return list(found)


def _survived(ordered: Sequence[Finding]) -> set[tuple[str, int]]:
    """Episodes (log, number) that the work got over, for a later episode of the same log shows a failure too."""
    last: dict[str, int] = {}
    for item in ordered:
        if _STRENGTH[item.rule.strength] >= _SIGN:
            last[item.source] = max(item.episode, last.get(item.source, 0))
    return {(item.source, item.episode) for item in ordered if item.episode < last.get(item.source, 0)}


def _candidates(ordered: Sequence[Finding], survived: set[tuple[str, int]]) -> list[_Candidate]:
    best: dict[Cause, _Candidate] = {}
    for place, item in enumerate(ordered):
        if item.rule.cause == "nothing":
            continue
        strength = 0 if (item.source, item.episode) in survived else _STRENGTH[item.rule.strength]
        known = best.get(item.rule.cause)
        if known is None or strength > known.strength:
            best[item.rule.cause] = _Candidate(item.rule.cause, strength, item, place)
    strongest = max((item.strength for item in best.values()), default=0)
    return [item for item in best.values() if item.strength > 0 or strongest == 0]


def _explains(table: Table, root: _Candidate, other: _Candidate) -> bool:
    """Whether `root`, which was seen too, brought `other` about."""
    if root.cause == other.cause or (root.strength < _SIGN and root.strength < other.strength):
        return False
    if root.strength < other.strength and root.place > other.place:
        return False  # what is weaker and comes later explains nothing
    if not _may_follow(table, other.cause, root.cause):
        return False
    if _may_follow(table, root.cause, other.cause):
        return root.place < other.place
    if root.first.time is None or other.first.time is None or root.strength > _SIGN:
        return True
    return root.first.time <= other.first.time + _TOO_LATE_S


def _may_follow(table: Table, cause: Cause, root: Cause) -> bool:
    return cause in table.causes and root in table.causes[cause].follows


def _evidence(first: Finding, same: Sequence[Finding]) -> tuple[str, ...]:
    """The finding's line and a few others of the same cause near it, without repetitions."""
    lines = [first.text.strip()]
    for item in same:
        near = item.source != first.source or abs(item.line - first.line) < EPISODE_GAP
        if near and item.text.strip() not in lines and len(lines) < LINES_SHOWN:
            lines.append(item.text.strip())
    return tuple(line if len(line) <= LONGEST_SHOWN else line[:LONGEST_SHOWN] + " ..." for line in lines)
