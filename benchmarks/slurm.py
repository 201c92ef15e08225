"""`python -m benchmarks.slurm --site SITE`: what planning, submitting and looking at a run cost, on a real cluster.

Run it where Slurm answers (`make slurm-cluster` brings a cluster up). It submits the tiny recipe, and one with
an array of 1,000, measures, and cancels both. The shell's own squeue and sacct of the same jobs are the limit.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recipes.recipe import load_recipe
from recipes.run_directory import RunDirectory
from slurm.plan import make_cluster_plan
from slurm.site import load_site
from slurm.submit import cancel, submit, submitted_ids
from slurm.watch import look

TINY = Path(__file__).parents[1] / "recipes/distill-grpo-qwen2-tiny.yaml"
ARRAY = """\
name: array
stages:
  problems: {type: problems, source: {type: running_sum, train: 2000, eval: 5}}
  generate:
    type: generate
    inputs: {problems: problems}
    engine: {type: programmatic}
    resources: {array: 1000}
"""


@dataclass
class Cost:
    """Of one piece of work, its child processes included."""

    wall_s: float
    own_cpu_s: float
    children_cpu_s: float


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", required=True)
    parser.add_argument("--looks", type=int, default=5)
    options = parser.parse_args()
    site, recipe = load_site(options.site), load_recipe(TINY)
    print("| what | wall s | own CPU s | CPU s of Slurm's commands |\n|" + "---|" * 4)
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".slurm-") as directory:
        command = [sys.executable, "-m", "reasonforge", "submit", str(TINY), "--site", options.site, "--dry-run"]
        show("submit --dry-run, 11 stages, the whole process", lambda: quiet(command))
        tiny = RunDirectory(Path(directory) / "tiny")
        show("plan of 11 stages", lambda: make_cluster_plan(recipe, site, tiny.root, sys.executable))
        show("submit of 11 stages", lambda: submit(tiny, recipe, site, sys.executable))
        cancel(tiny, None)
        path = Path(directory) / "array.yaml"
        path.write_text(ARRAY)
        array = RunDirectory(Path(directory) / "array")
        show("submit of an array of 1,000", lambda: submit(array, load_recipe(path), site, sys.executable))
        jobs = ",".join(submitted_ids(array).values())
        seen = {entry["stage"]: sum(entry.get("jobs", {}).values()) for entry in look(array).entries}
        if seen["generate"] != 1001:
            sys.exit(f"1,000 parts and the job that ends them were submitted, but {seen['generate']} are seen")
        for _ in range(options.looks):
            show("a look at it", lambda: look(array))
            show("squeue and sacct alone", lambda: quiet(*by_hand(jobs)))
        cancel(array, None)


def by_hand(jobs: str) -> list[list[str]]:
    """The same questions, asked in a shell."""
    return [
        ["squeue", "--noheader", "--array", "--states=all", f"--jobs={jobs}"],
        ["sacct", "--duplicates", "--allocations", "--noheader", f"--jobs={jobs}"],
    ]


def quiet(*commands: list[str]) -> None:
    """Run commands for their cost alone."""
    for command in commands:
        subprocess.run(command, check=True, capture_output=True)


def show(what: str, work: Callable[[], object]) -> Cost:
    """Do something, and print what it cost."""
    before = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    started = time.monotonic()
    work()
    wall = time.monotonic() - started
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own, children = (b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(before, after, strict=True))
    print(f"| {what} | {wall:.2f} | {own:.2f} | {children:.2f} |", flush=True)
    return Cost(wall, own, children)


if __name__ == "__main__":
    main()
