"""What the commands of `reasonforge data` share: options, destinations that are whole or absent, places to work in, and
how a result is told."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from data_prep.steps import Steps
    from reasonforge.progress import Progress

path_type = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
workers_option = click.option(
    "--workers", type=click.IntRange(1, 256), default=2, show_default=True, help="Processes that work at once."
)
sources_argument = click.argument("sources", metavar="ROWS...", nargs=-1, required=True, type=path_type)
into_option = click.option(
    "--into",
    "destination",
    type=path_type,
    required=True,
    help="A directory, for the kept rows, the others and the funnel.",
)
columns_option = click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="OURS=THEIRS",
    help="Which of their columns is ours, as in response=generation or prompt=messages.0.content. Repeatable.",
)
set_aside_option = click.option(
    "--set-aside", is_flag=True, help="Set bad rows aside in bad.jsonl; without it the first one ends the work."
)


def config_option(key: str) -> Callable[[Any], Any]:
    """`--config`: a YAML file with the key that a recipe's curate stage has too."""
    return click.option("--config", type=path_type, help=f"A YAML file with `{key}:`, as in a recipe's curate stage.")


def set_option(example: str) -> Callable[[Any], Any]:
    """`--set KEY=VALUE`."""
    return click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=f"As in --set {example}.")


def curate_files(
    sources: Sequence[Path],
    steps: "Steps",
    destination: Path,
    *,
    columns: Sequence[str] = (),
    workers: int = 2,
    seed: int = 0,
    single: bool = False,
) -> dict[str, Any]:
    """Do some steps of curation with the rows of some sources and publish the directory by rename, or its dataset alone
    as one file where the steps drop nothing (`single`); returns counts.

    A killed command goes on from a hidden directory beside the destination when it is called again in the same way.
    """
    from data_prep.curation import Curation
    from reasonforge.config import key_config
    from reasonforge.progress import Progress

    refuse_existing(destination)
    identity = {"steps": key_config(steps), "columns": list(columns), "seed": seed}
    with working(destination, sources, identity) as place:
        files = [_as_jsonl(source, columns, place / f"source-{at}") for at, source in enumerate(sources)]
        curation = Curation(files, steps, place / "shards")
        curation.work(workers=workers, progress=Progress)
        out = place / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        counts = curation.finish(out, seed=seed, progress=Progress)
        (out / "dataset.jsonl" if single else out).rename(destination)
    return counts


def refuse_existing(destination: Path) -> None:
    """Raises RequestError where something is there already, or where nothing can be put."""
    from reasonforge.errors import RequestError

    if destination.exists():
        raise RequestError(str(destination), "is already there", "name another, or move it")
    parent = destination.absolute().parent
    if not parent.is_dir():
        raise RequestError(str(destination.parent), "no such directory", "make it first")
    if not os.access(parent, os.W_OK):
        raise RequestError(str(destination.parent), "cannot be written", "name a place that can")


@contextmanager
def working(destination: Path, sources: Sequence[Path], identity: Mapping[str, Any]) -> Iterator[Path]:
    """A directory for the shards of one job, beside its destination: found again by the same job, and deleted when it
    is done. A full disk is told in one line."""
    from data_prep.disk import plain_disk_errors
    from data_prep.rows import files_of
    from reasonforge.errors import RequestError
    from reasonforge.files import canonical_json, sha256_text

    given: list[Any] = [str(source) for source in sources]
    for source in sources:
        for file in files_of(source):
            if not file.is_file():
                raise RequestError(str(file), "no such file")
            found = file.stat()
            given.append([str(file.absolute()), found.st_size, found.st_mtime_ns])
    key = sha256_text(canonical_json([given, identity]))
    root = destination.parent / f".{destination.name}.working"
    place = root / key[:16]
    with plain_disk_errors(destination):
        for other in root.iterdir() if root.is_dir() else ():
            if other != place:
                shutil.rmtree(other)
        place.mkdir(parents=True, exist_ok=True)
        try:
            yield place
        except BaseException:
            with suppress(OSError):  # what was finished stays; where nothing was, no trace is left
                place.rmdir()
                root.rmdir()
            raise
        shutil.rmtree(root)


def counted(title: str, source: Path) -> "Progress":
    """Progress over the rows of a jsonl file."""
    from data_prep.lines import count_lines
    from reasonforge.progress import Progress

    return Progress(title, count_lines(source, (0, source.stat().st_size)), "rows")


def say(as_json: bool, place: Path, found: Mapping[str, Any]) -> None:
    """Print counts, one a line, or as JSON."""
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    click.echo(f"{place}:")
    for name, value in found.items():
        told = ", ".join(f"{key} {count}" for key, count in value.items()) if isinstance(value, dict) else value
        click.echo(f"  {name}: {told}")


def _as_jsonl(source: Path, columns: Sequence[str], scratch: Path) -> Path:
    """The file itself where it is jsonl with our columns; else a copy of its rows."""
    from data_prep.rows import copy_rows, has_ids
    from reasonforge.errors import RequestError

    named = dict(column.partition("=")[::2] for column in columns)
    for ours, theirs in named.items():
        if not theirs:
            raise RequestError(f"--column {ours}", "names no column of theirs", "write OURS=THEIRS")
    if not named and has_ids(source):
        return source
    copy = scratch / f"{source.name}.jsonl"
    if not copy.exists():
        copy_rows(source, named, copy)
    return copy
