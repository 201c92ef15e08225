"""Problems with checkable answers, from the tiny task's generator or a user's file, split so that nothing overlaps.

The `problems` stage calls `source.make(seed)`; a prompt counts as the same when whitespace and case are folded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from data_prep.generation.sampling import TRACE_COLUMNS
from data_prep.sources import running_sum
from data_prep.sources.hub import commit_of, is_hub
from data_prep.sources.rows import files_of, good_row, needs_of, place_of, read_lines
from data_prep.sources.running_sum import RunningSum
from reasonforge.config import Strict
from reasonforge.errors import RequestError, nearest
from reasonforge.files import sha256_text

Row = dict[str, Any]

RESERVED = frozenset({*TRACE_COLUMNS, "verdict", "extracted", "dropped_by", "reason"})
"""Columns that later steps write; a user's extra column of such a name is kept as `source_<name>`."""


@dataclass(frozen=True)
class ProblemSet:
    """Train and evaluation problems (rows with id, prompt, answer, extra columns), and what was counted."""

    train: list[Row]
    eval: list[Row]
    counts: dict[str, Any]


def normalise(prompt: str) -> str:
    """A prompt with whitespace and case folded: prompts that agree in this are the same problem."""
    return " ".join(prompt.split()).casefold()


class RunningSumSource(Strict):
    """Problems of the tiny task: labelled sums of a few signed digits, every running total within 0..20."""

    type: Literal["running_sum"] = "running_sum"
    train: Annotated[int, Field(ge=1)]
    """Problems to train on."""
    eval: Annotated[int, Field(ge=1)]
    """Problems to evaluate on, none of them in train."""
    min_terms: Annotated[int, Field(ge=1, le=running_sum.MOST_TERMS)] = 3
    """Terms of the shortest sum."""
    max_terms: Annotated[int, Field(ge=1, le=running_sum.MOST_TERMS)] = 6
    """Terms of the longest sum; a model of 0.4 M parameters learns up to 6."""

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.min_terms > self.max_terms:
            raise ValueError(f"min_terms is {self.min_terms} but max_terms is {self.max_terms}; swap them")
        exist = running_sum.count_distinct(self.min_terms, self.max_terms)
        if self.train + self.eval > exist:
            raise ValueError(
                f"train {self.train} and eval {self.eval} make {self.train + self.eval} problems, but only {exist} "
                f"different ones of {self.min_terms} to {self.max_terms} terms exist; ask for fewer or raise max_terms"
            )
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """No module beyond the standard library."""
        return ()

    @property
    def external_files(self) -> tuple[Path, ...]:
        """None: the problems follow from the configuration and the seed."""
        return ()

    def make(self, seed: int) -> ProblemSet:
        """Draw the problems; where less than half of all are asked for, `train` does not change the evaluation ones."""
        if 2 * (self.train + self.eval) > running_sum.count_distinct(self.min_terms, self.max_terms):
            everything = list(running_sum.enumerate_all(self.min_terms, self.max_terms))
            drawn = _random(seed, "all").sample(everything, self.eval + self.train)
        else:
            drawn = list(self._draw(seed))
        evaluation, training = drawn[: self.eval], drawn[self.eval :]
        return ProblemSet(
            train=[_problem(f"train-{index:06d}", found) for index, found in enumerate(training)],
            eval=[_problem(f"eval-{index:06d}", found) for index, found in enumerate(evaluation)],
            counts={"train": self.train, "eval": self.eval},
        )

    def _draw(self, seed: int) -> Iterator[RunningSum]:
        seen: set[RunningSum] = set()
        for split, wanted in (("eval", self.eval), ("train", self.train)):
            rng = _random(seed, split)
            left = wanted
            while left:
                found = running_sum.draw(rng, self.min_terms, self.max_terms)
                if found not in seen:
                    seen.add(found)
                    left -= 1
                    yield found


class FileSource(Strict):
    """Problems from a file of the user's; further columns are kept.

    Duplicates are dropped (the first stays), and a train problem that is also an evaluation problem leaves train.
    """

    type: Literal["file"] = "file"
    path: str
    """A file (.jsonl, .jsonl.gz, .jsonl.zst, .parquet), one split of a dataset that `Dataset.save_to_disk` wrote, or
    one on the Hub (`hub:OWNER/NAME?config=…&split=…&revision=…`). A relative path starts at the current directory. A
    name on the Hub without a commit as its revision is read as it is then, and the receipt's counts say which commit
    that was; the stage is not done again when the Hub has another."""
    prompt_column: str = "prompt"
    """The column with the problem's text, a string."""
    answer_column: str = "answer"
    """The column with the gold answer, a string or a number."""
    eval_path: str | None = None
    """Evaluation problems, from a file or the Hub too, with the same columns. Give this or `eval_count`."""
    eval_count: Annotated[int, Field(ge=1)] | None = None
    """Evaluation problems to set aside from `path`, chosen by a hash of prompt and seed. Give this or `eval_path`."""

    licence: str | None = None
    """Under which the problems are given, for the dataset card: as the Hub names licences ("mit")."""

    @model_validator(mode="after")
    def _check_split(self) -> Self:
        if (self.eval_path is None) == (self.eval_count is None):
            found = "neither is" if self.eval_path is None else "both are"
            raise ValueError(f"evaluation problems come from eval_path or from eval_count, but {found} given; give one")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """What reads the files: pyarrow, unless they are plain jsonl, or datasets."""
        return tuple(dict.fromkeys(module for path in self._paths for module in needs_of(path)))

    @property
    def external_files(self) -> tuple[Path, ...]:
        """The user's files: their content decides the output as much as the configuration does."""
        return tuple(file for path in self._paths for file in files_of(path))

    @property
    def _paths(self) -> list[Path]:
        return [Path(path) for path in (self.path, self.eval_path) if path is not None]

    def make(self, seed: int) -> ProblemSet:
        """Read, check, deduplicate and split. Raises RequestError with file and line for what cannot be used."""
        rows = self._read(Path(self.path))
        unique = _unique(rows)
        counts: dict[str, Any] = {f"commit_of_{path}": commit_of(path) for path in self._paths if is_hub(path)}
        counts |= {"rows": len(rows), "duplicates": len(rows) - len(unique)}
        if self.eval_path is not None:
            eval_rows = self._read(Path(self.eval_path))
            evaluation = _unique(eval_rows)
            counts |= {"eval_rows": len(eval_rows), "eval_duplicates": len(eval_rows) - len(evaluation)}
        else:
            evaluation = self._set_aside(unique, seed)
        train = {prompt: row for prompt, row in unique.items() if prompt not in evaluation}
        if self.eval_path is not None:
            counts["train_also_in_eval"] = len(unique) - len(train)
        if not train:
            raise RequestError(
                self.path, f"all its {len(unique)} problems are in {self.eval_path} too, so train is empty"
            )
        _settle_ids(train | evaluation)
        counts |= {"train": len(train), "eval": len(evaluation)}
        return ProblemSet(train=list(train.values()), eval=list(evaluation.values()), counts=counts)

    def _read(self, path: Path) -> list[Row]:
        rows = [self._problem(place_of(path, line.number), good_row(path, line)) for line in read_lines(path)]
        if not rows:
            raise RequestError(str(path), "holds no problems", "each line or row is one problem")
        return rows

    def _problem(self, place: str, row: Row) -> Row:
        """A user's row in our form; the id, where there is one, is settled later."""
        for column in (self.prompt_column, self.answer_column):
            if column not in row:
                raise RequestError(place, f"no column {column!r}", nearest(column, row))
        prompt, answer = row[self.prompt_column], row[self.answer_column]
        if not isinstance(prompt, str) or not prompt.strip():
            problem = f"{self.prompt_column!r} is {_describe(prompt)}"
            raise RequestError(place, problem, "a prompt is a text that is not empty")
        if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
            problem = f"{self.answer_column!r} is {_describe(answer)}"
            raise RequestError(place, problem, "an answer is a text that is not empty, or a number")
        used = {self.prompt_column, self.answer_column}
        extra = {name: value for name, value in row.items() if name not in used}
        named = {f"source_{name}" if name in RESERVED else name: value for name, value in extra.items()}
        return {"id": "", "prompt": prompt, "answer": str(answer), **named}

    def _set_aside(self, unique: dict[str, Row], seed: int) -> dict[str, Row]:
        wanted = self.eval_count or 0
        if wanted >= len(unique):
            raise RequestError(
                self.path,
                f"holds {len(unique)} different problems, but eval_count asks for {wanted} and train needs some too",
                f"set eval_count below {len(unique)}",
            )
        chosen = set(sorted(unique, key=lambda prompt: sha256_text(f"{seed}\n{prompt}"))[:wanted])
        return {prompt: row for prompt, row in unique.items() if prompt in chosen}


Source = Annotated[RunningSumSource | FileSource, Field(discriminator="type")]


def _random(seed: int, purpose: str) -> Random:
    return Random(int(sha256_text(f"running_sum\n{seed}\n{purpose}"), 16))


def _problem(name: str, found: RunningSum) -> Row:
    return {"id": name, "prompt": found.prompt, "answer": str(found.answer)}


def _unique(rows: list[Row]) -> dict[str, Row]:
    """The rows by their normalised prompt, the first of each."""
    unique: dict[str, Row] = {}
    for row in rows:
        unique.setdefault(normalise(row["prompt"]), row)
    return unique


def _settle_ids(problems: dict[str, Row]) -> None:
    """Give each problem the user's id where all have one and no two agree, else one made from its prompt."""
    own = [row.get("source_id") for row in problems.values()]
    texts = {str(name) for name in own if isinstance(name, str | int) and not isinstance(name, bool) and str(name)}
    keep = len(texts) == len(problems)
    for prompt, row in problems.items():
        row["id"] = str(row.pop("source_id")) if keep else sha256_text(prompt)[:16]


def _describe(value: Any) -> str:
    if value is None:
        return "null"
    return "empty" if isinstance(value, str) else f"a value of type {type(value).__name__}"
