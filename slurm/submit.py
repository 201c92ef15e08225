"""Submits a plan: every job held, recorded, and only then released, so that a submission is whole or not at all."""

from collections.abc import Collection
from pathlib import Path

from reasonforge.errors import ReasonforgeError, RequestError
from reasonforge.files import read_json, write_atomic, write_json
from recipes.local import exclusive
from recipes.plan import make_plan
from recipes.recipe import Recipe, load_resolved, save_resolved
from recipes.run_directory import RunDirectory
from recipes.run_stage import is_done, open_job
from slurm import commands
from slurm.healing import History
from slurm.plan import FOLDER, ClusterPlan, Job, comment, load_cluster_plan, make_cluster_plan
from slurm.preflight import check
from slurm.scripts import submit_job
from slurm.site import Site
from slurm.stage_job import StageJob


def submit(run: RunDirectory, recipe: Recipe, site: Site, python: str) -> dict[str, str]:
    """Submit the stages that are not done; returns Slurm's ids by job name, none where all is done.

    Raises RequestError where the run is queued already or the plan cannot be carried out here, StageError where Slurm
    refuses a job; nothing is then in the queue.
    """
    with exclusive(run):
        live = [entry.id for entry in commands.squeue(sorted(submitted_ids(run).values())) if entry.state not in ENDED]
        if live:
            raise RequestError(
                str(run.root),
                f"this run is in the queue: job {', '.join(live[:5])}{' …' if len(live) > 5 else ''}",
                f"see reasonforge status {run.name}, or end it with reasonforge cancel {run.name}",
            )
        left = left_to_do(run, recipe)
        plan = make_cluster_plan(recipe, site, run.root, python, left)
        check(plan, recipe, site, run.root)
        _clear_orphans(run)
        save_resolved(recipe, run.recipe)
        write_json(run.plan, make_plan(recipe))
        write_json(run.root / FOLDER / "site.json", site.model_dump(mode="json"))
        write_json(run.root / FOLDER / "plan.json", plan.model_dump(mode="json"))
        write_json(run.root / FOLDER / "jobs.json", {})  # those of an earlier submission are not this plan's
        write_scripts(plan, run.root / FOLDER / "scripts")
        return _submit_all(run, plan)


def resume(run: RunDirectory, python: str) -> dict[str, str]:
    """Submit again what a submitted run lacks, to the site that it was submitted to."""
    load_cluster_plan(run.root)  # says so where it never was
    site = Site.model_validate_json((run.root / FOLDER / "site.json").read_bytes())
    return submit(run, load_resolved(run.recipe), site, python)


def cancel(run: RunDirectory, stage: str | None) -> list[str]:
    """Cancel a run, or one stage of it (what waits for it, Slurm then cancels); returns the ids of the jobs."""
    plan = load_cluster_plan(run.root)
    if stage is not None and not plan.of_stage(stage):
        stages = ", ".join(dict.fromkeys(job.stage for job in plan.jobs))
        raise RequestError(f"stage {stage}", "no job of this run is for it", f"choose one of: {stages}")
    known = submitted_ids(run)
    names = [job.name for job in plan.jobs if stage in (None, job.stage) and job.name in known]
    queued = [entry for entry in commands.squeue([known[name] for name in names]) if entry.state not in ENDED]
    live = {entry.id.partition("_")[0] for entry in queued}
    ids = [known[name] for name in reversed(names) if known[name] in live]
    commands.scancel(ids)
    run.record("run_cancelled", jobs=ids, cancelled=stage or "all")
    return ids


def left_to_do(run: RunDirectory, recipe: Recipe) -> list[str]:
    """The stages whose artifact is not there, or was made from others than those that are there now."""
    left: list[str] = []
    for name in recipe.order():
        needed = [ref.stage for ref in recipe.stages[name].input_refs()]
        if set(needed).intersection(left) or not is_done(open_job(run, name, recipe)):
            left.append(name)
    return left


def submitted_ids(run: RunDirectory) -> dict[str, str]:
    """Slurm's ids of the last submission, by job name."""
    path = run.root / FOLDER / "jobs.json"
    found: dict[str, str] = read_json(path) if path.exists() else {}
    return found


def write_scripts(plan: ClusterPlan, folder: Path) -> list[Path]:
    """Write each job's script into a folder, as NAME.sbatch; returns the files."""
    paths = []
    for job in plan.jobs:
        paths.append(folder / f"{job.name}.sbatch")
        write_atomic(paths[-1], job.script)
    return paths


def sbatch_flags(job: Job, ids: dict[str, str], excluded: Collection[str] = ()) -> list[str]:
    """What sbatch is told beyond the script, because it is not known before."""
    flags = ["--hold", "--kill-on-invalid-dep=yes"]
    if job.after:
        flags.append("--dependency=afterok:" + ":".join(ids[name] for name in job.after))
    if excluded:
        flags.append(f"--exclude={','.join(sorted(excluded))}")
    return flags


def _submit_all(run: RunDirectory, plan: ClusterPlan) -> dict[str, str]:
    ids: dict[str, str] = {}
    try:
        for job in plan.jobs:
            excluded = History.read(run, job.name, None).bad_nodes()
            work = [StageJob(run.root, job.name, part) for part in job.part_numbers]
            flags = sbatch_flags(job, ids, excluded)
            ids[job.name] = submit_job(run.root / FOLDER, job.script, work, flags)
            run.record("job_submitted", job=job.name, id=ids[job.name], excluded=sorted(excluded))
        write_json(run.root / FOLDER / "jobs.json", ids)
        commands.release(list(ids.values()))
    except (ReasonforgeError, KeyboardInterrupt):
        commands.scancel(list(ids.values()))
        write_json(run.root / FOLDER / "jobs.json", {})
        raise
    return ids


def _clear_orphans(run: RunDirectory) -> None:
    """Cancel jobs of this run that a submission left behind when it was killed before it could write them down."""
    commands.scancel(commands.jobs_with_comment(comment(run.root)))


ENDED = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
}
"""States of jobs that squeue still lists for a while (MinJobAge) after their end."""
