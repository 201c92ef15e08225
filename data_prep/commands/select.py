"""The command `data select`: which rows are taken, by what all of them are together."""

from collections.abc import Sequence
from pathlib import Path

import click

from data_prep.commands.common import (
    columns_option,
    config_option,
    curate_files,
    into_option,
    json_option,
    say,
    set_aside_option,
    set_option,
    sources_argument,
)


@click.command()
@sources_argument
@into_option
@config_option("select")
@set_option("select=[{type: balanced, rows: 100}]")
@click.option("--seed", default=0, show_default=True, help="Decides among equals.")
@columns_option
@set_aside_option
@json_option
def select(
    sources: Sequence[Path],
    destination: Path,
    config: Path | None,
    overrides: Sequence[str],
    seed: int,
    columns: Sequence[str],
    set_aside: bool,
    as_json: bool,
) -> None:
    """Take some of the rows: balanced, shortest correct, diverse, or of diverse gradients. The others say why not."""
    from pydantic import Field

    from data_prep.curation.steps import Steps
    from data_prep.selection import Selections
    from reasonforge.config import Strict, load_options

    class Options(Strict):
        """What `select` takes."""

        select: list[Selections] = Field(min_length=1)
        """Applied one after the other."""

    chosen = load_options(Options, config, overrides).select
    steps = Steps(select=chosen, bad_rows="set_aside" if set_aside else "refuse")
    counts = curate_files(sources, steps, destination, columns=columns, seed=seed)
    say(as_json, destination, {name: count for name, count in counts.items() if count})
