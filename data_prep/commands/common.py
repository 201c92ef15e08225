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
    from data_prep.curation.steps import Steps
    from data_prep.sources.rows import Source
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
    "--set-aside",
    is_flag=True,
    help="Set bad rows aside, in bad.jsonl or beside OUT.jsonl in OUT.bad.jsonl; else the first one ends the work.",
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
    as one file where the steps drop nothing (`single`), and beside it STEM.bad.jsonl where bad rows are set aside;
    returns counts.

    A killed command goes on from a hidden directory beside the destination when it is called again in the same way.
    """
    from data_prep.curation.curate import Curation
    from data_prep.curation.gathering import BAD, DATASET
    from reasonforge.config import key_config
    from reasonforge.disk import DiskFullError
    from reasonforge.errors import ReasonforgeError
    from reasonforge.files import fsync_path
    from reasonforge.progress import Progress

    refuse_existing(destination)
    identity = {"steps": key_config(steps), "columns": list(columns), "seed": seed}
    with working(destination, sources, identity) as place:
        bad = destination.with_name(f"{destination.stem}.{BAD}") if single and steps.bad_rows == "set_aside" else None
        if bad is not None and not any(place.iterdir()):  # else it may be what was published before a kill
            refuse_existing(bad)
        curation = Curation(_plain_files(sources, columns, place, steps), steps, place / "shards")
        curation.work(workers=workers, progress=Progress)
        out = place / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        try:
            counts = curation.finish(out, seed=seed, progress=Progress)
        except DiskFullError:
            raise
        except ReasonforgeError:  # the rows are to blame, and other rows are another job
            shutil.rmtree(place)
            raise
        if bad is not None:
            (out / BAD).replace(bad)
        (out / DATASET if single else out).rename(destination)
        fsync_path(destination.absolute().parent)
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


def plain_jsonl(source: Path) -> None:
    """Raises RequestError for what other commands read and this one does not: other kinds of files, directories."""
    from data_prep.sources.hub import is_hub
    from data_prep.sources.rows import CODECS
    from reasonforge.errors import RequestError

    others = (".parquet", *(end for end, codec in CODECS.items() if codec))
    if is_hub(source) or source.is_dir() or source.name.endswith(others):
        raise RequestError(str(source), "no plain jsonl file", "`data dedup` and others write one from any rows")


@contextmanager
def working(destination: Path, sources: Sequence[Path], identity: Mapping[str, Any]) -> Iterator[Path]:
    """A directory for the shards of one job, beside its destination: found again by the same job, and deleted when it
    is done. A full disk and Ctrl-C are told in one line."""
    from data_prep.sources.rows import files_of
    from reasonforge.disk import plain_disk_errors
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
        except BaseException as error:
            _remove_empty(root)  # what was finished stays; where nothing was, no trace is left
            if isinstance(error, KeyboardInterrupt):
                click.echo("stopped; the same command goes on from here", err=True)
            raise
        shutil.rmtree(root)


def _remove_empty(root: Path) -> None:
    """Delete the directories below one that hold no file, and itself where it holds none."""
    for place, _, _ in os.walk(root, topdown=False):
        with suppress(OSError):
            os.rmdir(place)


def counted(title: str, source: Path) -> "Progress":
    """Progress over the rows of a jsonl file."""
    from data_prep.sources.lines import count_lines
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


def _plain_files(sources: Sequence[Path], columns: Sequence[str], place: Path, steps: "Steps") -> "list[Source]":
    """The files themselves where they are jsonl with our columns; else copies of their rows.

    A row without an id gets its number as one, and where there are several files that of the file before it: "2/17".
    """
    from data_prep.sources.rows import Source, copy_rows, has_ids

    named = named_columns(columns)
    files = []
    for number, source in enumerate(sources, start=1):
        if not named and has_ids(source):
            files.append(Source(source, source))
            continue
        copy = place / f"source-{number}.jsonl"
        bad = copy.with_suffix(".bad.jsonl") if steps.bad_rows == "set_aside" else None
        if not copy.exists():
            copy_rows(source, named, copy, bad=bad, prefix=f"{number}/" if len(sources) > 1 else "")
        files.append(Source(copy, source, bad))
    return files


def named_columns(columns: Sequence[str]) -> dict[str, str]:
    """What `--column OURS=THEIRS` says. Raises RequestError where it says nothing, or one thing twice."""
    from reasonforge.errors import RequestError

    named: dict[str, str] = {}
    for column in columns:
        ours, _, theirs = column.partition("=")
        if not ours or not theirs:
            raise RequestError(f"--column {column}", "names no column of ours and theirs", "write OURS=THEIRS")
        if ours in named:
            raise RequestError(f"--column {column}", f"{ours} is {named[ours]} already", "name it once")
        named[ours] = theirs
    return named
