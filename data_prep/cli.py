"""The group of commands `data …`: blocks of the data path, each alone on files; `reasonforge.cli` hooks it in.

Those that take long, when killed, go on from a hidden directory beside the destination.
"""

import click

from data_prep.commands.curating import annotate, decontaminate, dedup, filter_command, verify
from data_prep.commands.generate import generate
from data_prep.commands.select import select
from data_prep.commands.tokens import index, pack, stats, tokenize


@click.group()
def data() -> None:
    """Make and prepare traces, each step alone on files: generate, verify, filter, deduplicate, select, tokenize.

    Ids tell rows apart, over all files: one that comes again is refused or set aside, but `dedup` drops a row that is
    in two files. A row without an id gets its number as one, with the file's before it where there are several (2/17).
    """


for command in (generate, verify, annotate, filter_command, dedup, decontaminate, select, tokenize, index, pack, stats):
    data.add_command(command)
