"""GPU-hours: what a run asked for and what it held, from one sacct. `reasonforge account` and the report show it."""

from collections import defaultdict

from recipes.accounting import Usage
from recipes.run_directory import RunDirectory
from slurm import commands
from slurm.plan import load_cluster_plan


def account(run: RunDirectory) -> list[Usage]:
    """A row for each stage that was ever submitted, in the plan's order.

    Jobs of earlier submissions of the run count too. Raises RequestError where it was never submitted, StageError where
    the accounting does not answer.
    """
    plan = load_cluster_plan(run.root)
    stages = {job.name: job.stage for job in plan.jobs}
    jobs: dict[str, str] = {}
    for event in run.read_events():
        if event["event"] == "job_submitted":
            jobs[event["id"]] = stages.get(event["job"], event["job"].partition(".")[0])
    held: dict[str, list[commands.Accounted]] = defaultdict(list)
    for attempt in commands.sacct(sorted(jobs)):
        number = attempt.id.partition("_")[0]
        if attempt.elapsed_s and number in jobs:
            held[jobs[number]].append(attempt)
    asked: dict[str, float] = defaultdict(float)
    for job in plan.jobs:
        asked[job.stage] += job.gpu_hours
    return [
        Usage(
            stage=stage,
            attempts=len(held[stage]),
            gpu_hours_at_most=round(asked[stage], 3),
            gpu_hours=round(sum(entry.gpus * entry.elapsed_s for entry in held[stage]) / 3600, 3),
            cpu_hours=round(sum(entry.cpus * entry.elapsed_s for entry in held[stage]) / 3600, 3),
        )
        for stage in dict.fromkeys([*jobs.values()])
    ]
