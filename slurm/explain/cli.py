"""The command `explain RUN [STAGE]` and `explain --log FILE`; `reasonforge.cli` hooks it in."""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reasonforge.errors import RequestError

if TYPE_CHECKING:
    from slurm.explain.engine import Diagnosis, Log

_STDIN = "-"


@click.command()
@click.argument("run_name", metavar="[RUN]", required=False)
@click.argument("stage", required=False)
@click.option("--log", "logs", multiple=True, metavar="FILE", help="Explain this log instead; - reads standard input.")
@click.option("--rules", multiple=True, type=click.Path(path_type=Path), help="A table of rules of your own.")
@click.option("--runs-dir", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Runs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
def explain(
    run_name: str | None, stage: str | None, logs: Sequence[str], rules: Sequence[Path], runs_dir: Path, as_json: bool
) -> None:
    """Say why a run or a stage failed: the root cause, where, the lines that show it, what to do.

    Give --log once for each rank where a job has several logs.
    """
    from slurm.explain.engine import explain as diagnose
    from slurm.explain.table import read_table

    if bool(run_name) == bool(logs):
        raise RequestError("explain", "needs a run or --log FILE, one of the two", "reasonforge explain RUN [STAGE]")
    table = read_table(rules)
    if logs:
        diagnosis = diagnose(table, [_log(name) for name in logs])
        click.echo(json.dumps(as_data(diagnosis), indent=2, ensure_ascii=False) if as_json else as_text(diagnosis))
        return
    from recipes.run_directory import find_run
    from slurm.explain.runs import explain_run

    found = explain_run(table, find_run(str(run_name), runs_dir), stage)
    if as_json:
        data = [{"stage": item.stage, "state": item.state, **as_data(item.diagnosis)} for item in found]
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    elif not found:
        click.echo("no stage has failed")
    else:
        click.echo("\n\n".join(f"stage {item.stage} ({item.state})\n{as_text(item.diagnosis)}" for item in found))


def _log(name: str) -> "Log":
    from slurm.explain.engine import Log
    from slurm.explain.runs import log_of_file

    if name == _STDIN:
        return Log("standard input", lambda: io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False)))
    return log_of_file(Path(name))


def as_data(diagnosis: "Diagnosis") -> dict[str, Any]:
    """A diagnosis as plain JSON values."""
    where = diagnosis.where
    return {
        "cause": diagnosis.cause,
        "where": where
        and {"log": where.log, "line": where.line, "node": where.node, "rank": where.rank, "code": where.code},
        "lines": list(diagnosis.lines),
        "remedy": diagnosis.remedy,
        "confidence": diagnosis.confidence,
        "cascade": list(diagnosis.cascade),
    }


def as_text(diagnosis: "Diagnosis") -> str:
    """A diagnosis as a few lines for people."""
    parts = [f"cause:   {diagnosis.cause} (confidence {diagnosis.confidence:.2f})"]
    if where := diagnosis.where:
        place = [f"{where.log}:{where.line}"]
        place += [f"rank {where.rank}"] if where.rank is not None else []
        place += [f"node {where.node}"] if where.node else []
        place += [where.code] if where.code else []
        parts.append(f"where:   {', '.join(place)}")
    for number, line in enumerate(diagnosis.lines):
        parts.append(f"{'shown by:' if number == 0 else '         '} {line}")
    if diagnosis.cascade:
        parts.append(f"besides: {', '.join(diagnosis.cascade)}")
    return "\n".join([*parts, f"remedy:  {diagnosis.remedy}"])
