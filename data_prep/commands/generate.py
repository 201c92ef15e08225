"""The command `data generate`: a teacher, or several, answer the problems of a file; `data_prep.cli` hooks it in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import click

from data_prep.commands.common import json_option, path_type, refuse_existing, say, set_option, working


@click.command()
@click.argument("problems", metavar="PROBLEMS", type=path_type)
@click.argument("destination", metavar="TRACES.jsonl", type=path_type)
@click.option("--config", type=path_type, help="A YAML file with `engine:` and `sampling:`, as in a generate stage.")
@set_option("engine.type=vllm --set engine.model_path=teacher --set sampling.samples=4")
@click.option("--seed", default=0, show_default=True, help="As a recipe's seed.")
@json_option
def generate(
    problems: Path, destination: Path, config: Path | None, overrides: Sequence[str], seed: int, as_json: bool
) -> None:
    """Let a teacher answer every problem (`id`, `prompt`, `answer`; further columns are carried along)."""
    from pydantic import model_validator

    from data_prep.generation import Engine, Sampling
    from reasonforge.config import Strict, key_config, load_options
    from reasonforge.progress import Progress

    class Options(Strict):
        """What `generate` takes."""

        engine: Engine
        """Who answers."""
        sampling: Sampling = Sampling()
        """How many answers a problem gets, and how they are drawn."""

        @model_validator(mode="after")
        def _check_engine(self) -> Self:
            self.engine.check(self.sampling)
            return self

    options = load_options(Options, config, overrides)
    refuse_existing(destination)
    rows = _read(problems)
    files = [[str(path.absolute()), *_state(path)] for path in options.engine.external_files]
    with working(destination, [problems], {**key_config(options), "seed": seed, "files": files}) as place:
        counts = options.engine.generate(
            rows, options.sampling, destination=place / "traces.jsonl", scratch=place, seed=seed, progress=Progress
        )
        (place / "traces.jsonl").rename(destination)
    say(as_json, destination, counts)


def _read(path: Path) -> list[dict[str, Any]]:
    """The problems; RequestError where there are none, where one lacks a column, or two have one id."""
    from data_prep.sources.rows import checked_lines, place_of
    from reasonforge.errors import RequestError

    rows: dict[str, dict[str, Any]] = {}
    lines: dict[str, int] = {}
    for number, row in checked_lines(path, ("id", "prompt", "answer")):
        first = lines.setdefault(row["id"], number)
        if first != number:
            problem = f"the id {row['id']!r} comes again: {place_of(path, first)} has it already"
            raise RequestError(place_of(path, number), problem, "give each problem an id of its own")
        rows[row["id"]] = row
    if not rows:
        raise RequestError(str(path), "no problems to answer")
    return list(rows.values())


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
