"""The commands `convert import|export|inspect|verify|merge`; `reasonforge.cli` hooks the group in."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reasonforge.display import data_size

if TYPE_CHECKING:
    from checkpoints_conversion.publishing import Outcome
    from checkpoints_conversion.tasks import Task
    from reasonforge.progress import Progress

_directory = click.Path(path_type=Path)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
_workers_option = click.option(
    "--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Threads that copy at once."
)
_dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Round every weight to this type; without it every bit is kept.",
)


def _task_options(command: Callable[..., None]) -> Callable[..., None]:
    """--task and --tasks, for the commands that several processes can do together."""
    number = click.option("--task", type=int, help="Number of this process, from 0, where several convert together.")
    count = click.option(
        "--tasks", type=int, help="How many processes convert together; those of the Slurm step by default."
    )
    return number(count(command))


@click.group()
def convert() -> None:
    """Convert checkpoints between Hugging Face and Megatron, exact to the bit."""


@convert.command("import")
@click.argument("source", metavar="HF_DIR", type=_directory)
@click.argument("destination", metavar="DESTINATION", type=_directory)
@click.option(
    "--pad-vocabulary",
    "vocabulary_multiple",
    type=int,
    help="Pad the vocabulary to a multiple of this: --make-vocab-size-divisible-by, times tensor parallelism. "
    "By default 128; for bridge 1.",
)
@click.option(
    "--layer-spec",
    type=click.Choice(["te", "local"]),
    default="te",
    show_default=True,
    help="Whose keys to write where Transformer Engine's layers and the local ones differ (experts).",
)
@click.option(
    "--directory",
    type=click.Choice(["megatron", "nemo", "bridge"]),
    default="megatron",
    show_default=True,
    help="Whose directory to make: Megatron-LM's, NeMo 2's or Megatron-Bridge's.",
)
@_dtype_option
@_task_options
@_workers_option
@_json_option
def import_command(
    source: Path,
    destination: Path,
    workers: int,
    as_json: bool,
    task: int | None,
    tasks: int | None,
    **options: Any,
) -> None:
    """Make a Megatron checkpoint of a Hugging Face model."""
    from checkpoints_conversion.importing import ImportOptions, import_checkpoint

    part = _part(task, tasks)
    outcome = import_checkpoint(
        source, destination, ImportOptions(**options), workers, _counter("importing", part), part
    )
    _say(as_json, outcome)


@convert.command("export")
@click.argument("source", metavar="MEGATRON_DIR", type=_directory)
@click.argument("destination", metavar="DESTINATION", type=_directory)
@click.option("--reference", type=_directory, help="A directory with the model's config.json and tokenizer.")
@click.option("--max-shard-size", default=5.0, show_default=True, help="Largest file of weights, in GB.")
@_dtype_option
@_task_options
@_workers_option
@_json_option
def export_command(
    source: Path,
    destination: Path,
    reference: Path | None,
    max_shard_size: float,
    dtype: str | None,
    task: int | None,
    tasks: int | None,
    workers: int,
    as_json: bool,
) -> None:
    """Make a Hugging Face model of a Megatron, NeMo 2 or Megatron-Bridge checkpoint."""
    from checkpoints_conversion.exporting import export_checkpoint

    limit, part = int(max_shard_size * 1e9), _part(task, tasks)
    counter = _counter("exporting", part)
    outcome = export_checkpoint(source, destination, reference, limit, workers, counter, dtype=dtype, task=part)
    _say(as_json, outcome)


@convert.command("inspect")
@click.argument("directory", metavar="DIR", type=_directory)
@click.option("--reference", type=_directory, help="A directory with the model's config.json.")
@_json_option
def inspect_command(directory: Path, reference: Path | None, as_json: bool) -> None:
    """Say what a checkpoint is: format, family, parameters, types, files, missing parts."""
    from checkpoints_conversion.inspection import inspect

    found = inspect(directory, reference)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for key, value in found.items():
        told = ", ".join(f"{name}: {count}" for name, count in value.items()) if isinstance(value, dict) else value
        told = ", ".join(map(str, value)) or "nothing" if isinstance(value, list) else told
        click.echo(f"{key.replace('_', ' '):<16} {told}")


@convert.command("verify")
@click.argument("directory", metavar="A", type=_directory)
@click.argument("other", metavar="[B]", type=_directory, required=False)
@click.option("--tolerance", type=click.FloatRange(min=0), help="Largest absolute difference; bit by bit without it.")
@click.option("--reference", type=_directory, help="A directory with the model's config.json.")
@_json_option
def verify_command(
    directory: Path, other: Path | None, tolerance: float | None, reference: Path | None, as_json: bool
) -> None:
    """Compare two checkpoints of either format, or check one: exit 3 where they differ or it has NaN or infinities."""
    from checkpoints_conversion.verification import check, compare

    if other is None:
        verdict = check(directory, reference, _counter("checking"))
    else:
        verdict = compare(directory, other, tolerance, reference, _counter("comparing"))
    if as_json:
        click.echo(json.dumps(verdict.json(), indent=2))
    else:
        for problem in verdict.problems:
            click.echo(problem)
        size = f"{verdict.tensors} tensors, {data_size(verdict.bytes)}"
        if verdict.without_checksums:
            click.echo(
                f"{verdict.without_checksums} archives were saved without checksums: flipped bits in them do not show"
            )
        said = ("equal" if other else "sound") if verdict.good else f"{verdict.bad} problems"
        click.echo(f"{said}: {size}")
    if not verdict.good:
        raise click.exceptions.Exit(3)


@convert.command("merge")
@click.argument("sources", metavar="HF_DIR=WEIGHT...", nargs=-1, required=True)
@click.option("--into", "destination", type=_directory, required=True, help="Where the merged model goes.")
@_workers_option
@_json_option
def merge_command(sources: tuple[str, ...], destination: Path, workers: int, as_json: bool) -> None:
    """Average Hugging Face models of one shape, as in: merge instruct=0.5 distilled=0.5 --into merged."""
    from checkpoints_conversion.merging import merge
    from reasonforge.errors import RequestError

    parts = []
    for source in sources:
        path, _, weight = source.rpartition("=")
        try:
            parts.append((Path(path), float(weight)))
        except ValueError:
            raise RequestError("merge", f"found {source!r}", "each model is DIR=WEIGHT") from None
    _say(as_json, merge(parts, destination, workers, _counter("merging")))


def _part(number: int | None, tasks: int | None) -> "Task":
    from checkpoints_conversion.tasks import this_task

    return this_task(number, tasks, os.environ)


def _counter(title: str, task: "Task | None" = None) -> "Callable[[int], Progress]":
    from reasonforge.progress import Progress

    told = f"{title}, {task}" if task is not None and task.tasks > 1 else title
    return lambda total: Progress(told, total, "bytes")


def _say(as_json: bool, outcome: "Outcome") -> None:
    found = {
        "destination": str(outcome.destination),
        "bytes": outcome.bytes,
        "already_done": outcome.already_done,
    }
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        told = "was already converted" if outcome.already_done else "converted"
        click.echo(f"{outcome.destination}: {told}, {data_size(outcome.bytes)}")
