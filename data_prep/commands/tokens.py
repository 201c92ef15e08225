"""The commands `data tokenize|index|pack|stats`: token ids, bins of them, and what is in a file."""

from pathlib import Path

import click

from data_prep.commands.common import (
    json_option,
    path_type,
    plain_jsonl,
    refuse_existing,
    say,
    workers_option,
    working,
)


@click.command()
@click.argument("dataset", metavar="DATASET.jsonl", type=path_type)
@click.argument("destination", metavar="DIRECTORY", type=path_type)
@click.option("--model", type=path_type, required=True, help="A model's directory, with its tokenizer.")
@click.option("--max-tokens", type=click.IntRange(1), required=True, help="Longer rows are dropped, not cut.")
@workers_option
@json_option
def tokenize(dataset: Path, destination: Path, model: Path, max_tokens: int, workers: int, as_json: bool) -> None:
    """Turn prompts and responses into tokens.parquet by the model's chat template, the loss on the responses only."""
    from data_prep.tokenization.dataset import tokenize_file
    from reasonforge.progress import Progress

    plain_jsonl(dataset)
    refuse_existing(destination)
    identity = {"model": str(model.absolute()), "max_tokens": max_tokens}
    progress = Progress("tokenizing", 0, "shards")
    with working(destination, [dataset], identity) as scratch, progress:
        out = scratch / "out"
        out.mkdir(exist_ok=True)
        summary = tokenize_file(
            dataset, model, out, max_tokens=max_tokens, scratch=scratch / "shards", workers=workers, progress=progress
        )
        out.rename(destination)
    told = ("rows", "tokens", "completion_tokens", "longest", "dropped")
    say(as_json, destination, {name: summary[name] for name in told})


@click.command()
@click.argument("texts", metavar="TEXTS.jsonl", type=path_type)
@click.argument("prefix", metavar="PREFIX", type=path_type)
@click.option("--model", type=path_type, required=True, help="A model's directory, with its tokenizer.")
@click.option("--column", default="text", show_default=True, help="The column with the text, or a list of sentences.")
@click.option("--append-eod", is_flag=True, help="End each document with the end-of-sequence token.")
@click.option("--skip-bad", is_flag=True, help="Leave bad lines out and list them, instead of refusing the file.")
@workers_option
@json_option
def index(
    texts: Path, prefix: Path, model: Path, column: str, append_eod: bool, skip_bad: bool, workers: int, as_json: bool
) -> None:
    """Turn plain texts into PREFIX_COLUMN_document.bin and .idx, as Megatron-LM's preprocess_data.py does."""
    from data_prep.formats.megatron_indexed import Plan, write_indexed
    from reasonforge.progress import Progress

    target = prefix.with_name(f"{prefix.name}_{column}_document.idx")
    plain_jsonl(texts)
    refuse_existing(target)
    plan = Plan(texts, model, column=column, append_eod=append_eod, skip_bad=skip_bad)
    progress = Progress("tokenizing", 0, "shards")
    with working(target, [texts], {"model": str(model.absolute()), "column": column}) as scratch, progress:
        summary = write_indexed(plan, prefix, scratch=scratch, workers=workers, progress=progress)
    say(as_json, target, summary)


@click.command()
@click.argument("tokens", metavar="TOKENS.parquet", type=path_type)
@click.argument("destination", metavar="PACKED", type=path_type)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["nemo", "bridge"]),
    required=True,
    help="Who reads it: NeMo 2 (PACKED.npy) or Megatron-Bridge (PACKED.idx.parquet).",
)
@click.option("--size", type=click.IntRange(1), required=True, help="The most tokens in a bin; a row counts one less.")
@click.option("--seed", default=0, show_default=True, help="Of the order of the bins.")
@click.option("--dropped", type=path_type, help="List the rows that no bin takes here; without it they are refused.")
@json_option
def pack(tokens: Path, destination: Path, kind: str, size: int, seed: int, dropped: Path | None, as_json: bool) -> None:
    """Pack rows into bins with as little padding as can be."""
    from data_prep.formats.bridge_packed import write_bridge_packed
    from data_prep.formats.nemo_packed import write_nemo_packed
    from reasonforge.disk import plain_disk_errors

    for made in (destination, *([] if dropped is None else [dropped])):
        refuse_existing(made)
    write = {"nemo": write_nemo_packed, "bridge": write_bridge_packed}[kind]
    with plain_disk_errors(destination):
        figures = write(tokens, destination, pack_size=size, seed=seed, dropped=dropped)
    say(as_json, destination, figures)


@click.command()
@click.argument("source", metavar="ROWS", type=path_type)
@json_option
def stats(source: Path, as_json: bool) -> None:
    """Count rows, verdicts and finish reasons, and measure the texts of each column."""
    from data_prep.sources.rows import read_rows
    from data_prep.statistics import measure

    say(as_json, source, measure(read_rows(source)))
