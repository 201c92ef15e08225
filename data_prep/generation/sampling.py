"""How answers are sampled, and the trace rows that every engine writes.

The engines of this package and the `evaluate` stage use it.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from reasonforge.config import Strict
from reasonforge.files import sha256_text, write_jsonl
from reasonforge.progress import Progress

Row = dict[str, Any]
MakeProgress = Callable[[str, int, str], Progress]

TRACE_COLUMNS = (
    "id",
    "problem_id",
    "sample",
    "prompt",
    "answer",
    "response",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "teacher",
)
"""The columns of a trace row, in order; the problem's extra columns follow."""


class Sampling(Strict):
    """How many answers a problem gets and how their tokens are drawn. By default from the model's own distribution.

    DeepSeek-R1 is evaluated at temperature 0.6, top_p 0.95, 32,768 tokens (arXiv 2501.12948, section 3).
    """

    samples: Annotated[int, Field(ge=1)] = 1
    """Answers a problem."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Divides the logits; 0 takes the likeliest token always."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Tokens are drawn from the likeliest ones that hold this much probability together (arXiv 1904.09751)."""
    max_tokens: Annotated[int, Field(ge=1)] = 32768
    """New tokens an answer at most, thinking included; an answer cut there has finish_reason "length"."""


def sample_seed(seed: int, problem_id: str, sample: int) -> int:
    """The seed of one sample, 0 ≤ seed < 2**31: it depends on nothing but the run's seed and the sample's name."""
    return int(sha256_text(f"{seed}\n{problem_id}\n{sample}")[:8], 16) >> 1


def trace_row(
    problem: Row,
    sample: int,
    response: str,
    *,
    teacher: str,
    finish_reason: str = "stop",
    prompt_tokens: int | None = None,
    completion_tokens: int | None = None,
) -> Row:
    """A trace: one sampled response with its problem's columns."""
    return {
        "id": f"{problem['id']}/{sample}",
        "problem_id": problem["id"],
        "sample": sample,
        "prompt": problem["prompt"],
        "answer": problem["answer"],
        "response": response,
        "finish_reason": finish_reason,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "teacher": teacher,
        **{name: value for name, value in problem.items() if name not in TRACE_COLUMNS},
    }


def publish_traces(rows: Iterable[Row], destination: Path) -> dict[str, Any]:
    """Write trace rows by rename and count them: problems, samples, how they finished, tokens where they are known."""
    problems: set[str] = set()
    finished: Counter[str] = Counter()
    tokens: Counter[str] = Counter()

    def counted() -> Iterable[Row]:
        for row in rows:
            problems.add(row["problem_id"])
            finished[f"finished_{row['finish_reason']}"] += 1
            tokens.update({name: row[name] for name in ("prompt_tokens", "completion_tokens") if row[name] is not None})
            yield row

    samples = write_jsonl(destination, counted())
    return {"problems": len(problems), "samples": samples, **dict(sorted(finished.items())), **dict(tokens)}
