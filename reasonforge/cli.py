"""The command line: a thin face over the rooms. Every command imports what it needs when it is called."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from checkpoints_conversion.cli import convert
from data_prep.cli import data
from reasonforge import __version__
from reasonforge.disk import disk_error
from reasonforge.errors import ReasonforgeError, RequestError
from slurm.cli import account, cancel, resume, site, submit
from slurm.explain.cli import explain

_set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe, as in --set stages.grpo.engine.steps=20. Repeatable.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
_runs_option = click.option(
    "--runs-dir", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where runs are kept."
)
_recipe_argument = click.argument("recipe_file", metavar="RECIPE", type=click.Path(path_type=Path))


class _Face(click.Group):
    """Turns the project's errors into their one line and exit code; --debug shows the traceback instead."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ReasonforgeError as error:
            if ctx.params["debug"]:
                raise
            for line in str(error).splitlines():
                click.echo(f"error: {line}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(130)
        except BrokenPipeError:
            sys.stderr.close()
            ctx.exit(0)
        except OSError as error:  # a full disk, a directory that may not be written
            if ctx.params["debug"]:
                raise
            told = disk_error(error, Path.cwd())
            where = error.filename or "the system says"
            click.echo(f"error: {told or f'{where}: {error.strerror or error}'}", err=True)
            ctx.exit(told.exit_code if told is not None else 1)


@click.group(cls=_Face, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="reasonforge")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Turn open models into reasoning models: traces, curation, distillation, GRPO, evaluation, report."""


@main.command()
@_recipe_argument
@_set_option
@_runs_option
@click.option("--name", help="The run's name; the recipe's name by default.")
@click.option("--from", "first", metavar="STAGE", help="Leave out the stages before this one.")
@click.option("--until", "last", metavar="STAGE", help="Leave out the stages after this one.")
@click.option("--force", multiple=True, metavar="STAGE", help="Do this stage again, even if it is done. Repeatable.")
def run(
    recipe_file: Path,
    overrides: Sequence[str],
    runs_dir: Path,
    name: str | None,
    first: str | None,
    last: str | None,
    force: Sequence[str],
) -> None:
    """Run a recipe on this machine. What is done already is skipped; what was interrupted goes on."""
    from reasonforge.display import showing
    from reasonforge.progress import duration
    from recipes.local import check_outside_inputs, launch, select
    from recipes.recipe import check_run_name, load_recipe
    from recipes.run_directory import RunDirectory

    recipe = load_recipe(recipe_file, overrides)
    check_run_name(name or recipe.name)
    chosen = select(recipe, first, last, force)
    directory = RunDirectory(runs_dir / (name or recipe.name))
    check_outside_inputs(directory, recipe, chosen)
    started = time.monotonic()
    click.echo(f"run {directory.name}: {len(chosen)} stages in {directory.root}")
    try:
        with showing(chosen) as show:
            launch(directory, recipe, chosen, force, show)
    except KeyboardInterrupt:
        click.echo("stopped; the same command goes on from here", err=True)
        sys.exit(130)
    click.echo(f"done in {duration(time.monotonic() - started)}")
    _name_report(directory.report_link, chosen, recipe)


def _name_report(link: Path, chosen: Sequence[str], recipe: Any) -> None:
    """The closing line of a run that ends in a report: where it is, and pass@1 of each model with its interval."""
    if not any(recipe.stages[name].kind == "report" for name in chosen):
        return
    from reasonforge.files import read_json

    models = read_json(link / "report.json")["models"]
    figures = [
        f"{name} {score['value']:.1%} [{score['low']:.1%}, {score['high']:.1%}]"
        for name, score in ((name, model["pass@1"]) for name, model in models.items())
    ]
    click.echo(f"report: {link / 'index.html'}  pass@1: {'; '.join(figures)}")


@main.command()
@_recipe_argument
@_set_option
@_json_option
def validate(recipe_file: Path, overrides: Sequence[str], as_json: bool) -> None:
    """Check a recipe: every key, every type, every stage's inputs."""
    from recipes.recipe import load_recipe

    recipe = load_recipe(recipe_file, overrides)
    _print(
        as_json,
        {"recipe": recipe.name, "stages": recipe.order()},
        lambda: click.echo(f"{recipe_file}: good; {len(recipe.stages)} stages: {', '.join(recipe.order())}"),
    )


@main.command()
@_recipe_argument
@_set_option
@_json_option
@click.option("--resolved", is_flag=True, help="Print the whole recipe with every default filled in.")
@click.option("--site", "site_name", help="A site: show the jobs, their resources and GPU-hours there.")
def plan(recipe_file: Path, overrides: Sequence[str], as_json: bool, resolved: bool, site_name: str | None) -> None:
    """Show what a run of a recipe would do, stage by stage."""
    from recipes.plan import make_plan
    from recipes.recipe import load_recipe

    recipe = load_recipe(recipe_file, overrides)
    if resolved:
        import yaml

        data = recipe.model_dump(mode="json")
        _print(as_json, data, lambda: click.echo(yaml.safe_dump(data, sort_keys=False), nl=False))
        return
    if site_name:
        _show_jobs(recipe, site_name, as_json)
        return
    planned = make_plan(recipe)
    rows = [
        (entry["name"], entry["type"], entry["engine"] or "", ", ".join(entry["inputs"].values()), entry["kind"])
        for entry in planned["stages"]
    ]
    _print(as_json, planned, lambda: _show(_table(("stage", "type", "engine", "needs", "makes"), rows)))


def _show_jobs(recipe: Any, site_name: str, as_json: bool) -> None:
    """The plan on a cluster: a row a job."""
    from slurm.plan import make_cluster_plan
    from slurm.preflight import raise_all, site_problems, stage_needs
    from slurm.site import load_site

    site = load_site(site_name)
    planned = make_cluster_plan(recipe, site, (Path("runs") / recipe.name).absolute(), sys.executable)
    raise_all(list(site_problems(recipe, site, planned)))
    rows = [
        (
            job.name,
            ", ".join(job.after),
            f"{job.tasks} ×" if job.parts else "",
            f"{job.nodes} × {job.gpus_per_node}",
            f"{job.hours:g}",
            f"{job.gpu_hours:g}",
        )
        for job in planned.jobs
    ]
    rows.append(("all", "", "", "", "", f"{sum(job.gpu_hours for job in planned.jobs):g}"))
    header = ("job", "after", "array", "nodes × GPUs", "hours at most", "GPU-hours at most")
    needs = stage_needs(recipe, site)
    memory = {
        name: {"bytes": {row.component: row.bytes for row in need.gpu.rows}, "capacity": need.gpu.capacity}
        for name, need in needs.items()
        if need.gpu is not None
    }
    remarks = [f"stages.{name}: {it.severity}: {it}" for name, need in needs.items() for it in need.problems]

    def show() -> None:
        _show(_table(header, rows))
        lines = [
            (name if number == 0 else "", *line)
            for name, need in needs.items()
            if need.gpu is not None
            for number, line in enumerate(need.gpu.text_rows())
        ]
        if lines:
            _show(_table(("stage", "memory of a GPU", "GiB", "share"), lines))
        for remark in remarks:
            _show(remark)

    _print(as_json, {**planned.model_dump(mode="json"), "memory": memory, "remarks": remarks}, show)


@main.command()
@click.argument("run_name", metavar="RUN")
@_runs_option
@_json_option
@click.option("-f", "--follow", is_flag=True, help="Show it again and again until nothing is queued or running.")
@click.option("--wait", is_flag=True, help="Say nothing until then; exit 0 if every stage is done, 1 if not.")
@click.option("--every", default=10.0, show_default=True, type=click.FloatRange(min=0.2), help="Seconds between looks.")
def status(run_name: str, runs_dir: Path, as_json: bool, follow: bool, wait: bool, every: float) -> None:
    """Show the state of each stage of a run, on this machine or in a cluster's queue."""
    from reasonforge.display import refreshing
    from recipes.run_directory import find_run
    from slurm.watch import look

    directory = find_run(run_name, runs_dir)
    seen = look(directory)
    if follow and not as_json:
        with refreshing() as show:
            while not seen.settled:
                show(_status_table(seen))
                time.sleep(every)
                seen = look(directory)
    while wait and not seen.settled:
        time.sleep(every)
        seen = look(directory)
    _print(as_json, seen.entries, lambda: _show(_status_table(seen)))
    if seen.silent is not None:
        click.echo(f"Slurm does not answer ({seen.silent}); this is what the run directory says", err=True)
    if (wait or follow) and not seen.good:
        sys.exit(1)


def _status_table(seen: Any) -> Any:
    from reasonforge.progress import duration

    rows = [
        (
            entry["stage"],
            entry["state"],
            ", ".join(f"{count} {state.lower()}" for state, count in entry.get("jobs", {}).items()),
            duration(entry["wall_s"]) if "wall_s" in entry else "",
            _remark(entry),
        )
        for entry in seen.entries
    ]
    header = ("stage", "state", "jobs", "took", "")
    if not any(row[2] for row in rows):
        return _table((*header[:2], *header[3:]), [(*row[:2], *row[3:]) for row in rows])
    return _table(header, rows)


def _remark(entry: dict[str, Any]) -> str:
    if "error" in entry:
        return str(entry["error"])
    if "reason" in entry:
        return str(entry["reason"])
    if progress := entry.get("progress"):
        return f"{progress['title']} {progress['done']}/{progress['total']} {progress['unit']} {progress['note']}"
    return f"attempt {entry['attempt']}" if entry.get("attempt", 1) > 1 else ""


@main.command()
@click.argument("run_name", metavar="RUN")
@click.argument("stage", required=False)
@_runs_option
@click.option("-f", "--follow", is_flag=True, help="Go on printing as the log grows.")
def logs(run_name: str, stage: str | None, runs_dir: Path, follow: bool) -> None:
    """Print the log of a stage; without STAGE, of the one that started last."""
    from recipes.run_directory import find_run

    directory = find_run(run_name, runs_dir)
    if stage is None:
        started = [event["stage"] for event in directory.read_events() if event["event"] == "stage_started"]
        if not started:
            raise RequestError(str(directory.root), "no stage has started", "start it with: reasonforge run RECIPE")
        stage = started[-1]
    path = directory.log(stage)
    if not path.exists():
        raise RequestError(str(path), "no such log", f"the run has: {', '.join(directory.logged_stages()) or 'none'}")
    with open(path, encoding="utf-8", errors="replace") as handle:
        while True:
            for line in handle:
                click.echo(line, nl=False)
            if not follow:
                return
            time.sleep(0.5)


@main.command()
@click.argument("run_name", metavar="RUN")
@_runs_option
@_json_option
def verify(run_name: str, runs_dir: Path, as_json: bool) -> None:
    """Read every file of a run's artifacts against its receipt; exit 2 at the first that differs."""
    from reasonforge import artifacts
    from recipes.run_directory import find_run

    directory = find_run(run_name, runs_dir)
    found = [artifacts.verify(path) for path in directory.published()]
    entries = [
        {"stage": artifact.receipt.stage, "digest": artifact.digest, "files": len(artifact.receipt.files)}
        for artifact in found
    ]
    _print(
        as_json,
        entries,
        lambda: click.echo(f"{directory.root}: {len(found)} artifacts, every file as its receipt says"),
    )


@main.command()
@click.argument("recipe_file", metavar="[RECIPE]", required=False, type=click.Path(path_type=Path))
@_set_option
@_json_option
def doctor(recipe_file: Path | None, overrides: Sequence[str], as_json: bool) -> None:
    """Show what is installed here and, for a recipe, what each of its stages would lack (exit 1 if anything)."""
    from recipes.doctor import examine, missing_modules, other_interpreters
    from recipes.recipe import load_recipe

    recipe = load_recipe(recipe_file, overrides) if recipe_file else None
    lacking, others = (missing_modules(recipe), other_interpreters(recipe)) if recipe else ({}, {})
    found = examine()

    def show() -> None:
        _show(_table(("what", "found"), [(name, version or "-") for name, version in found.items()]))
        for name, modules in lacking.items():
            where = f" in {others[name]}" if name in others else ""
            click.echo(f"stage {name}: {'lacks ' + ', '.join(modules) if modules else 'has all it needs'}{where}")

    _print(as_json, {"found": found, "lacking": lacking, "interpreters": others}, show)
    if any(lacking.values()):
        sys.exit(1)


for command in (convert, data, submit, resume, cancel, site, explain, account):
    main.add_command(command)


def _print(as_json: bool, data: Any, show: Callable[[], None]) -> None:
    if as_json:
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        show()


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(*header, box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _show(table: Any) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 1000).print(table)  # a file is not folded
