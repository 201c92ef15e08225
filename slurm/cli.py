"""The commands `submit`, `resume`, `cancel` and `site`; `reasonforge.cli` hooks them in."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click

_runs_option = click.option(
    "--runs-dir", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where runs are kept."
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
_set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the recipe."
)


@click.command()
@click.argument("recipe_file", metavar="RECIPE", type=click.Path(path_type=Path))
@click.option("--site", "site_name", required=True, help="A site file, or the name of a shipped one.")
@click.option("--name", help="The run's name; the recipe's name by default.")
@click.option("--dry-run", is_flag=True, help="Print each script as it would be submitted, and submit nothing.")
@click.option("--scripts", type=click.Path(path_type=Path), help="With --dry-run: write them here, as NAME.sbatch.")
@_set_option
@_runs_option
@_json_option
def submit(
    recipe_file: Path,
    site_name: str,
    name: str | None,
    dry_run: bool,
    scripts: Path | None,
    overrides: Sequence[str],
    runs_dir: Path,
    as_json: bool,
) -> None:
    """Send a recipe's stages to a Slurm cluster. What is done already is left out."""
    from recipes.recipe import check_run_name, load_recipe
    from recipes.run_directory import RunDirectory
    from slurm.site import load_site

    recipe, site = load_recipe(recipe_file, overrides), load_site(site_name)
    check_run_name(name or recipe.name)
    run = RunDirectory(runs_dir / (name or recipe.name))
    if dry_run:
        from slurm.plan import make_cluster_plan
        from slurm.preflight import raise_all, site_problems
        from slurm.submit import write_scripts

        plan = make_cluster_plan(recipe, site, run.root, sys.executable)
        raise_all(list(site_problems(recipe, site, plan)))
        if scripts is not None:
            for path in write_scripts(plan, scripts):
                click.echo(str(path))
            return
        for job in plan.jobs:
            waits = f", after {', '.join(job.after)}" if job.after else ""
            click.echo(f"# {job.name}{waits}\n{job.script}")
        return
    from slurm.submit import submit as submit_run

    _say(run.name, submit_run(run, recipe, site, sys.executable), as_json)


@click.command()
@click.argument("run_name", metavar="RUN")
@_runs_option
@_json_option
def resume(run_name: str, runs_dir: Path, as_json: bool) -> None:
    """Submit again what a submitted run lacks, to the same site."""
    from recipes.run_directory import find_run
    from slurm.submit import resume as resume_run

    run = find_run(run_name, runs_dir)
    _say(run.name, resume_run(run, sys.executable), as_json)


def _say(run: str, ids: dict[str, str], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(ids, indent=2))
    elif ids:
        click.echo(f"run {run}: {len(ids)} jobs submitted, {', '.join(ids.values())}; see reasonforge status {run}")
    else:
        click.echo(f"run {run}: every stage is done")


@click.command()
@click.argument("run_name", metavar="RUN")
@click.argument("stage", required=False)
@_runs_option
def cancel(run_name: str, stage: str | None, runs_dir: Path) -> None:
    """End a submitted run, or one stage of it, in the queue or at work. What is done stays; `resume` goes on."""
    from recipes.run_directory import find_run
    from slurm.submit import cancel as cancel_run

    ids = cancel_run(find_run(run_name, runs_dir), stage)
    click.echo(f"cancelled: {', '.join(ids)}" if ids else "nothing of it is in the queue")


@click.command()
@click.argument("run_name", metavar="RUN")
@_runs_option
@_json_option
def account(run_name: str, runs_dir: Path, as_json: bool) -> None:
    """Show what a submitted run asked for and what it held, by stage: GPU-hours, CPU-hours, attempts."""
    from recipes.run_directory import find_run
    from slurm.account import account as account_run

    rows = [row.model_dump() for row in account_run(find_run(run_name, runs_dir))]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(f"{'stage':<24} {'attempts':>8} {'GPU-hours at most':>18} {'GPU-hours':>10} {'CPU-hours':>10}")
    names = ("gpu_hours_at_most", "gpu_hours", "cpu_hours")
    total = {name: round(sum(row[name] for row in rows), 3) for name in names}
    for row in [*rows, {"stage": "all", "attempts": sum(row["attempts"] for row in rows), **total}]:
        hours = " ".join(f"{row[name]:>{width}g}" for name, width in zip(names, (18, 10, 10), strict=True))
        click.echo(f"{row['stage']:<24} {row['attempts']:>8} {hours}")


@click.group()
def site() -> None:
    """Describe a cluster once, for every recipe."""


@site.command("probe")
@click.option("--into", type=click.Path(path_type=Path), help="Write the file here; on standard output without it.")
def probe_command(into: Path | None) -> None:
    """Write a site file from what Slurm says of the cluster that this machine belongs to."""
    from reasonforge.errors import RequestError
    from reasonforge.files import write_atomic
    from slurm.probe import probe

    text = probe()
    if into is None:
        click.echo(text, nl=False)
        return
    if into.exists():
        raise RequestError(str(into), "is already there", "name another file, or move it")
    write_atomic(into, text)
    click.echo(f"{into}: look it over, then: reasonforge submit RECIPE --site {into}")


@site.command("show")
@click.argument("name", metavar="SITE")
def show_command(name: str) -> None:
    """Print a site, of a file or shipped, with every default filled in."""
    import yaml

    from slurm.site import load_site

    click.echo(yaml.safe_dump(load_site(name).model_dump(mode="json"), sort_keys=False), nl=False)
