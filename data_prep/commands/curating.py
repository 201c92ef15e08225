"""The commands `data verify|annotate|filter|dedup|decontaminate`: steps of curation, each alone on files. When killed,
they go on where they were."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from data_prep.commands.common import (
    columns_option,
    config_option,
    curate_files,
    into_option,
    json_option,
    path_type,
    say,
    set_aside_option,
    set_option,
    sources_argument,
    workers_option,
)


@click.command()
@click.argument("traces", metavar="TRACES", type=path_type)
@click.argument("destination", metavar="GRADED.jsonl", type=path_type)
@config_option("grader")
@set_option("grader.type=exact")
@columns_option
@set_aside_option
@workers_option
@json_option
def verify(
    traces: Path,
    destination: Path,
    config: Path | None,
    overrides: Sequence[str],
    columns: Sequence[str],
    set_aside: bool,
    workers: int,
    as_json: bool,
) -> None:
    """Grade every trace: its verdict and the answer that was found in it are added to its row."""
    steps = {"grader": _required("grader", config, overrides)}
    counts = _to_one_file(traces, destination, steps, columns, set_aside=set_aside, workers=workers)
    say(as_json, destination, {name: count for name, count in counts.items() if count and name != "rows_in"})


@click.command()
@click.argument("source", metavar="ROWS", type=path_type)
@click.argument("destination", metavar="ANNOTATED.jsonl", type=path_type)
@config_option("annotate")
@set_option("annotate=[{type: language}]")
@columns_option
@set_aside_option
@workers_option
@json_option
def annotate(
    source: Path,
    destination: Path,
    config: Path | None,
    overrides: Sequence[str],
    columns: Sequence[str],
    set_aside: bool,
    workers: int,
    as_json: bool,
) -> None:
    """Add columns: language, domain, difficulty, tokens. Rows of one problem must stand together."""
    steps = {"annotate": _required("annotate", config, overrides)}
    counts = _to_one_file(source, destination, steps, columns, set_aside=set_aside, workers=workers)
    say(as_json, destination, {name: counts[name] for name in ("set_aside", "rows") if counts.get(name)})


@click.command("filter")
@sources_argument
@into_option
@config_option("filters")
@set_option("filters=[{type: thinking}]")
@columns_option
@set_aside_option
@workers_option
@json_option
def filter_command(config: Path | None, overrides: Sequence[str], **options: Any) -> None:
    """Drop the rows that a filter has a reason to drop."""
    _to_directory({"filters": _required("filters", config, overrides)}, **options)


@click.command()
@sources_argument
@into_option
@click.option("--near", is_flag=True, help="Drop near-duplicates too (MinHash), not only equal rows.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="With --near, as in --set threshold=0.7.")
@columns_option
@set_aside_option
@workers_option
@json_option
def dedup(near: bool, overrides: Sequence[str], **options: Any) -> None:
    """Keep the first of equal rows, over all files in their order."""
    from data_prep.overlap.deduplication import NearDuplicates
    from reasonforge.config import load_options

    found = load_options(NearDuplicates, None, overrides) if near or overrides else None
    _to_directory({"deduplicate": True, "near_duplicates": found}, **options)


@click.command()
@sources_argument
@into_option
@click.option("--against", multiple=True, required=True, help="A file of evaluation problems. Repeatable.")
@click.option("--prompt-column", default="prompt", show_default=True, help="Where those files have the problem's text.")
@set_option("n=10")
@columns_option
@set_aside_option
@workers_option
@json_option
def decontaminate(against: Sequence[str], prompt_column: str, overrides: Sequence[str], **options: Any) -> None:
    """Drop the rows that share a run of words with an evaluation problem."""
    from data_prep.overlap.decontamination import Benchmark, Decontamination
    from reasonforge.config import load_options

    found = load_options(Decontamination, None, overrides)
    benchmarks = [Benchmark(path=path, column=prompt_column) for path in against]
    steps = {"decontaminate": found.model_copy(update={"against": [*found.against, *benchmarks]})}
    _to_directory(steps, **options)


def _required(key: str, config: Path | None, overrides: Sequence[str]) -> Any:
    """What the user says of one step. Raises RequestError where it says nothing, or of others."""
    from data_prep.curation.steps import Steps
    from reasonforge.config import load_options
    from reasonforge.errors import RequestError, nearest

    steps = load_options(Steps, config, overrides)
    where = str(config or "--set")
    for other in steps.model_fields_set - {key}:
        raise RequestError(f"{where}: {other}", "unknown key", nearest(other, [key]))
    if key not in steps.model_fields_set:
        raise RequestError(f"{where}: {key}", "missing", "it has no default, so it must be given")
    found = getattr(steps, key)
    if found == []:
        raise RequestError(f"{where}: {key}", "an empty list, so there is nothing to do", "name one or more")
    return found


def _to_one_file(
    source: Path,
    destination: Path,
    steps: Mapping[str, Any],
    columns: Sequence[str],
    *,
    set_aside: bool,
    workers: int,
) -> dict[str, Any]:
    from data_prep.curation.steps import Steps

    chosen = Steps(**steps, bad_rows="set_aside" if set_aside else "refuse")
    return curate_files([source], chosen, destination, columns=columns, workers=workers, single=True)


def _to_directory(
    steps: Mapping[str, Any],
    *,
    sources: Sequence[Path],
    destination: Path,
    columns: Sequence[str],
    set_aside: bool,
    workers: int,
    as_json: bool,
) -> None:
    from data_prep.curation.steps import Steps

    chosen = Steps(**steps, bad_rows="set_aside" if set_aside else "refuse")
    counts = curate_files(sources, chosen, destination, columns=columns, workers=workers)
    say(as_json, destination, {name: count for name, count in counts.items() if count})
