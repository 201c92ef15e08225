"""The programmatic teacher: writes traces for running-sum problems by rule, some hasty, some wrong.

The tiny recipes generate with it, so that the filters and the reinforcement have something to do.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from random import Random
from string import ascii_lowercase
from typing import Annotated, Literal

from pydantic import Field

from data_prep.generation.engine import TraceEngine, Work
from data_prep.generation.sampling import Row, sample_seed, trace_row
from data_prep.shards import map_shards
from data_prep.sources.running_sum import LARGEST_TOTAL, RunningSum, parse
from reasonforge.config import Operational
from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl

SHARD_SIZE = 500
"""Problems a shard: well under a second of work, so a kill loses little."""


class ProgrammaticTeacher(TraceEngine):
    """Thinks one line a term, `a+3:9+3=12`, then boxes the total; knows running sums only.

    Hasty traces are right, so a filter by outcome keeps them and reinforcement has something to unlearn; wrong traces
    are what the filter is for.
    """

    type: Literal["programmatic"] = "programmatic"
    hasty_rate: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Probability, before each line, that it stops to think and boxes the right answer at once."""
    wrong_rate: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Probability that a trace has one slip, which carries through to a wrong answer in the box."""
    workers: Annotated[int, Field(ge=1), Operational()] = 1
    """Processes."""

    def rows(self, work: Work) -> Iterator[Row]:
        """A trace for each problem and sample; of the sampling only `samples` means anything here.

        Raises RequestError for a prompt that is not a running sum.
        """
        with work.progress("generating", len(work.problems), "problems") as counter:
            shards = map_shards(
                work.problems,
                partial(_trace_shard, self, work.sampling.samples, work.seed),
                shard_size=SHARD_SIZE,
                scratch=work.scratch / "shards",
                workers=self.workers,
                progress=counter,
            )
            yield from (row for shard in shards for row in read_jsonl(shard))

    def respond(self, problem: RunningSum, rng: Random) -> str:
        """One response to one problem.

        The draws are in a fixed order: how many lines are thought out, then whether there is a slip, then where.
        """
        lines = 0
        while lines < len(problem.operands) and rng.random() >= self.hasty_rate:
            lines += 1
        totals = list(problem.totals)
        if rng.random() < self.wrong_rate:
            totals = _slip(totals, rng.randint(1, max(lines, 1)) if lines else len(totals) - 1, rng)
        return "\n".join(["<think>", *_thinking(problem, totals[: lines + 1]), "</think>", rf"\boxed{{{totals[-1]}}}"])


def _thinking(problem: RunningSum, totals: list[int]) -> Iterator[str]:
    for label, operand, before, after in zip(ascii_lowercase, problem.operands, totals, totals[1:], strict=False):
        yield f"{label}{operand:+d}:{before}{operand:+d}={after}"


def _slip(totals: list[int], at: int, rng: Random) -> list[int]:
    """The totals with an error made at index `at` and carried through, within 0..20 wherever that is possible."""
    late = totals[at:]
    fitting = [by for by in (-3, -2, -1, 1, 2, 3) if min(late) + by >= 0 and max(late) + by <= LARGEST_TOTAL]
    error = rng.choice(fitting or [1, 2, 3])
    return totals[:at] + [total + error for total in late]


def _trace_shard(teacher: ProgrammaticTeacher, samples: int, seed: int, _: int, problems: Sequence[Row]) -> list[Row]:
    rows = []
    for problem in problems:
        found = parse(problem["prompt"])
        if found is None:
            raise RequestError(
                f"problem {problem['id']}",
                "its prompt is not a running sum, and the programmatic teacher knows nothing else",
                "use an engine of type openai or hf",
            )
        for sample in range(samples):
            rng = Random(sample_seed(seed, problem["id"], sample))
            rows.append(trace_row(problem, sample, teacher.respond(found, rng), teacher=teacher.type))
    return rows
