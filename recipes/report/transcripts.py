"""A few problems with what each model answered, chosen for what they show: gained, uncertain, missed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reasonforge.files import read_jsonl
from recipes.evaluation.scoring import ProblemScore, Scores

_MOST_CHARACTERS = 3000
_CLOSE = "</think>"


@dataclass(frozen=True)
class Response:
    """One sample: its thinking and the text after it, shortened where they are long."""

    right: bool
    verdict: str
    extracted: str | None
    thinking: str
    final: str
    truncated: bool
    tokens: int | None


@dataclass(frozen=True)
class Answers:
    """What one model made of a problem: how often it was right, its first right and its first wrong response."""

    model: str
    correct: int
    n: int
    responses: list[Response]


@dataclass(frozen=True)
class Transcript:
    """A problem, why it is shown, and the models' answers."""

    title: str
    problem: str
    prompt: str
    answer: str
    models: list[Answers]


def choose_transcripts(scores: Mapping[str, Scores], samples: Mapping[str, Path]) -> list[Transcript]:
    """Pick the problems from the scores, then read only their rows from each model's `samples.jsonl`."""
    picked = _pick([list(found.per_problem) for found in scores.values()])
    rows = {name: _responses(samples[name], {problem for problem, _ in picked}) for name in scores}
    counts = {name: {entry.id: entry for entry in found.per_problem} for name, found in scores.items()}
    transcripts = []
    for problem, title in picked:
        first = next(iter(rows.values()))[problem]
        answers = [
            Answers(name, counts[name][problem].correct, counts[name][problem].n, rows[name][problem].responses)
            for name in scores
        ]
        transcripts.append(Transcript(title, problem, shortened(first.prompt), shortened(first.answer), answers))
    return transcripts


def shortened(text: str, most: int = _MOST_CHARACTERS) -> str:
    """The beginning and the end of a long text, with the number of characters left out between them."""
    if len(text) <= most:
        return text
    head, tail = most * 2 // 3, most // 3
    return f"{text[:head]}\n… {len(text) - head - tail} characters left out …\n{text[-tail:]}"


def split_thinking(response: str) -> tuple[str, str]:
    """A response as (thinking, final text). Without a closing tag, an opened thought has no final text after it."""
    thinking, close, final = response.rpartition(_CLOSE)
    if close:
        return thinking + close, final
    return (response, "") if "<think>" in response else ("", response)


def _pick(models: Sequence[Sequence[ProblemScore]]) -> list[tuple[str, str]]:
    """(problem id, title), at most three."""
    common = [group for group in _by_problem(models) if all(entry.scored for entry in group)]
    picked: dict[str, str] = {}

    def take(title: str, candidates: list[tuple[float, str]]) -> None:
        left = [(rank, problem) for rank, problem in candidates if problem not in picked]
        if left:
            picked[min(left, key=lambda candidate: candidate[0])[1]] = title

    gains = [(group[0].correct - group[-1].correct, group[0].id) for group in common]
    take("Most gained", [(rank, problem) for rank, problem in gains if rank < 0])
    lasts = [group[-1] for group in common]
    take("Still uncertain", [(abs(e.correct - e.n / 2), e.id) for e in lasts if 0 < e.correct < e.n])
    take("Still missed", [(e.correct, e.id) for e in lasts if 2 * e.correct < e.n])
    if not picked:
        take("Always right", [(-e.correct, e.id) for e in lasts])
    return list(picked.items())


def _by_problem(models: Sequence[Sequence[ProblemScore]]) -> list[list[ProblemScore]]:
    tables = [{entry.id: entry for entry in entries} for entries in models]
    return [[table[entry.id] for table in tables] for entry in models[0] if all(entry.id in t for t in tables)]


@dataclass
class _Rows:
    prompt: str
    answer: str
    responses: list[Response]


def _responses(path: Path, wanted: set[str]) -> dict[str, _Rows]:
    """The first right and the first wrong response to each wanted problem."""
    found: dict[str, _Rows] = {}
    for row in read_jsonl(path):
        if row["problem_id"] not in wanted:
            continue
        rows = found.setdefault(row["problem_id"], _Rows(row["prompt"], row["answer"], []))
        right = row["verdict"] == "correct"
        if any(response.right == right for response in rows.responses):
            continue
        thinking, final = split_thinking(row["response"])
        rows.responses.append(
            Response(
                right=right,
                verdict=row["verdict"].replace("_", " "),
                extracted=row["extracted"],
                thinking=shortened(thinking),
                final=shortened(final.strip("\n")),
                truncated=row["finish_reason"] == "length",
                tokens=row["completion_tokens"],
            )
        )
        rows.responses.sort(key=lambda response: not response.right)
    return found
