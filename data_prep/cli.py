"""The commands `data verify|filter|dedup|decontaminate|tokenize|pack|stats`: blocks of the data path, each alone on
files; `reasonforge.cli` hooks the group in. `verify` and `tokenize`, when killed, go on from a hidden directory beside
the destination."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from reasonforge.progress import Progress

_path = click.Path(path_type=Path)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
_workers_option = click.option(
    "--workers", type=click.IntRange(1, 256), default=2, show_default=True, help="Processes that work at once."
)


@click.group()
def data() -> None:
    """Prepare traces: verify, filter, deduplicate, decontaminate, tokenize and pack them, each alone on files."""


@data.command()
@click.argument("traces", metavar="TRACES", type=_path)
@click.argument("destination", metavar="GRADED.jsonl", type=_path)
@click.option("--config", type=_path, help="A YAML file with `grader:`, as in a recipe's curate stage.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As in --set grader.type=exact.")
@_workers_option
@_json_option
def verify(
    traces: Path, destination: Path, config: Path | None, overrides: Sequence[str], workers: int, as_json: bool
) -> None:
    """Grade every trace: its verdict and the answer that was found in it are added to its row."""
    from itertools import chain

    from data_prep import curation
    from data_prep.grading import BaseGrader, Grader
    from reasonforge.config import Strict, key_config, load_options
    from reasonforge.files import read_jsonl, write_jsonl

    class Options(Strict):
        """What `verify` takes."""

        grader: Grader
        """What extracts and verifies the answers."""

    grader: BaseGrader = load_options(Options, config, overrides).grader
    _refuse_existing(destination)
    with _working(destination, traces, key_config(grader)) as scratch, _counted("grading", traces) as progress:
        shards = curation.verify(traces, grader, scratch=scratch, workers=workers, progress=progress)
        counts: dict[str, int] = {}

        def rows() -> Iterator[dict[str, Any]]:
            for row in chain.from_iterable(map(read_jsonl, shards)):
                counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
                yield row

        total = write_jsonl(destination, rows())
    _say(as_json, destination, {"rows": total, **dict(sorted(counts.items()))})


_sources_argument = click.argument("sources", metavar="ROWS...", nargs=-1, required=True, type=_path)
_into_option = click.option(
    "--into",
    "destination",
    type=_path,
    required=True,
    help="A directory, for the kept rows, the others and the funnel.",
)


@data.command("filter")
@_sources_argument
@_into_option
@click.option("--config", type=_path, help="A YAML file with `filters:`, as in a recipe's curate stage.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As in --set filters=[{type: thinking}].")
@_json_option
def filter_command(
    sources: Sequence[Path], destination: Path, config: Path | None, overrides: Sequence[str], as_json: bool
) -> None:
    """Drop the rows that a filter has a reason to drop."""
    from data_prep.filters import Filters
    from reasonforge.config import Strict, load_options

    class Options(Strict):
        """What `filter` takes."""

        filters: list[Filters]
        """Applied in this order."""

    filters = load_options(Options, config, overrides).filters
    _select(sources, destination, as_json, tuple(name for one in filters for name in one.columns), filters=filters)


@data.command()
@_sources_argument
@_into_option
@click.option("--near", is_flag=True, help="Drop near-duplicates too (MinHash), not only equal rows.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="With --near, as in --set threshold=0.7.")
@_json_option
def dedup(sources: Sequence[Path], destination: Path, near: bool, overrides: Sequence[str], as_json: bool) -> None:
    """Keep the first of equal rows, over all files in their order."""
    from data_prep.deduplication import NearDuplicates
    from reasonforge.config import load_options

    near_duplicates = load_options(NearDuplicates, None, overrides) if near or overrides else None
    columns = ("prompt", "response", *(near_duplicates.columns if near_duplicates else ()))
    _select(sources, destination, as_json, columns, deduplicate=True, near_duplicates=near_duplicates)


@data.command()
@_sources_argument
@_into_option
@click.option("--against", multiple=True, required=True, type=_path, help="A file of evaluation problems. Repeatable.")
@click.option("--prompt-column", default="prompt", show_default=True, help="Where those files have the problem's text.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As in --set n=10.")
@_json_option
def decontaminate(
    sources: Sequence[Path],
    destination: Path,
    against: Sequence[Path],
    prompt_column: str,
    overrides: Sequence[str],
    as_json: bool,
) -> None:
    """Drop the rows that share a run of words with an evaluation problem."""
    from data_prep.decontamination import Decontamination
    from data_prep.rows import checked_rows
    from reasonforge.config import load_options

    problems = (
        {"id": str(row.get("id", number)), "prompt": row[prompt_column], "benchmark": path.name}
        for path in against
        for number, row in enumerate(checked_rows(path, (prompt_column,)))
    )
    config = load_options(Decontamination, None, overrides)
    _select(sources, destination, as_json, config.columns, decontamination=config, evaluation=problems)


@data.command()
@click.argument("dataset", metavar="DATASET.jsonl", type=_path)
@click.argument("destination", metavar="DIRECTORY", type=_path)
@click.option("--model", type=_path, required=True, help="A model's directory, with its tokenizer and chat template.")
@click.option("--max-tokens", type=click.IntRange(1), required=True, help="Longer rows are dropped, not cut.")
@_workers_option
@_json_option
def tokenize(dataset: Path, destination: Path, model: Path, max_tokens: int, workers: int, as_json: bool) -> None:
    """Turn prompts and responses into tokens.parquet, with the loss on the responses only."""
    from data_prep.tokenization import tokenize_file

    _refuse_existing(destination)
    identity = {"model": str(model.absolute()), "max_tokens": max_tokens}
    with _working(destination, dataset, identity) as scratch, _counted("tokenizing", dataset) as progress:
        out = scratch / "out"
        out.mkdir(exist_ok=True)
        summary = tokenize_file(
            dataset, model, out, max_tokens=max_tokens, scratch=scratch / "shards", workers=workers, progress=progress
        )
        out.rename(destination)
    told = ("rows", "tokens", "completion_tokens", "longest", "dropped")
    _say(as_json, destination, {name: summary[name] for name in told})


@data.command()
@click.argument("tokens", metavar="TOKENS.parquet", type=_path)
@click.argument("destination", metavar="PACKED", type=_path)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["nemo", "bridge"]),
    required=True,
    help="Who reads it: NeMo 2 (PACKED.npy) or Megatron-Bridge (PACKED.idx.parquet).",
)
@click.option("--size", type=click.IntRange(1), required=True, help="The most tokens in a bin; a row counts one less.")
@click.option("--seed", default=0, show_default=True, help="Of the order of the bins.")
@click.option("--dropped", type=_path, help="List the rows that no bin takes here; without it they are refused.")
@_json_option
def pack(tokens: Path, destination: Path, kind: str, size: int, seed: int, dropped: Path | None, as_json: bool) -> None:
    """Pack rows into bins with as little padding as can be."""
    from data_prep.formats.bridge_packed import write_bridge_packed
    from data_prep.formats.nemo_packed import write_nemo_packed

    _refuse_existing(destination)
    write = {"nemo": write_nemo_packed, "bridge": write_bridge_packed}[kind]
    _say(as_json, destination, write(tokens, destination, pack_size=size, seed=seed, dropped=dropped))


@data.command()
@click.argument("source", metavar="ROWS", type=_path)
@_json_option
def stats(source: Path, as_json: bool) -> None:
    """Count rows, verdicts and finish reasons, and measure the texts of each column."""
    from data_prep.rows import read_rows
    from data_prep.statistics import measure

    _say(as_json, source, measure(read_rows(source)))


def _select(sources: Sequence[Path], destination: Path, as_json: bool, columns: Sequence[str], **steps: Any) -> None:
    """One pass of `curation.select` over the rows of some files, which must have some columns besides their ids; the
    directory is published by rename."""
    from data_prep.curation import select
    from data_prep.rows import checked_rows

    _refuse_existing(destination)
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        given = {"filters": [], "deduplicate": False, "decontamination": None, "evaluation": (), **steps}
        rows = (row for path in sources for row in checked_rows(path, ("id", *columns)))
        counts = select(rows, out=temporary, **given)
        temporary.rename(destination)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _say(as_json, destination, {name: count for name, count in counts.items() if count})


def _refuse_existing(destination: Path) -> None:
    from reasonforge.errors import RequestError

    if destination.exists():
        raise RequestError(str(destination), "is already there", "name another, or move it")
    if not destination.absolute().parent.is_dir():
        raise RequestError(str(destination.parent), "no such directory", "make it first")


@contextmanager
def _working(destination: Path, source: Path, identity: dict[str, Any]) -> Iterator[Path]:
    """A directory for the shards of one job, beside its destination: found again by the same job, and deleted when it
    is done."""
    from reasonforge.errors import RequestError
    from reasonforge.files import canonical_json, sha256_text

    if not source.is_file():
        raise RequestError(str(source), "no such file")
    found = source.stat()
    key = sha256_text(canonical_json([str(source.absolute()), found.st_size, found.st_mtime_ns, identity]))
    root = destination.parent / f".{destination.name}.working"
    place = root / key[:16]
    for other in root.iterdir() if root.is_dir() else ():
        if other != place:
            shutil.rmtree(other)
    place.mkdir(parents=True, exist_ok=True)
    yield place
    shutil.rmtree(root)


def _counted(title: str, source: Path) -> "Progress":
    from reasonforge.progress import Progress

    with source.open("rb") as handle:
        return Progress(title, sum(1 for line in handle if line.strip()), "rows")


def _say(as_json: bool, place: Path, found: dict[str, Any]) -> None:
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    click.echo(f"{place}:")
    for name, value in found.items():
        told = ", ".join(f"{key} {count}" for key, count in value.items()) if isinstance(value, dict) else value
        click.echo(f"  {name}: {told}")
