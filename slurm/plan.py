"""The plan of a run on a cluster: a pure function of recipe, site and place. `plan`, `submit` and the jobs read it.

A stage is one job; a stage that is divided is an array (several, where it is longer than the site allows) and a job
that puts the parts together. A job waits for those that make its stage's inputs.
"""

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from containers.runtimes import Wrapped
from reasonforge.config import Strict
from reasonforge.errors import RequestError
from recipes.recipe import Recipe
from recipes.run_directory import RunDirectory
from recipes.stage import Stage
from slurm.scripts import render
from slurm.site import OFFLINE, Partition, Placement, Retries, Secret, Site

FOLDER = "slurm"
"""Where a run directory keeps what belongs to Slurm: the plan, submitted jobs, their scripts and their host's logs."""


class Job(Strict):
    """One submission to Slurm, complete: nothing about it is decided later but the ids of the jobs it waits for."""

    name: str
    """Stage, or STAGE.parts, STAGE.parts-2, ... for arrays."""
    stage: str
    parts: tuple[int, int] | None = None
    """The first part and the number of parts of an array; None for a job of its own."""
    after: tuple[str, ...] = ()
    """The jobs that must end well first."""
    step: tuple[str, ...]
    """The command of the stage's step: srun over all nodes, in the site's runtime. An array adds --part N to it."""
    environment: dict[str, str]
    """What the step's environment has beyond that of the job."""
    secrets: dict[str, Secret]
    """What is read when the job starts, and put into the step's environment too."""
    nodes: int
    gpus_per_node: int
    hours: float
    save_s: int
    retries: Retries
    script: str
    """What sbatch is given, byte for byte."""

    @property
    def part_numbers(self) -> list[int | None]:
        """The part that each task does; None for a job of its own."""
        return list(range(self.parts[0], sum(self.parts))) if self.parts else [None]

    @property
    def tasks(self) -> int:
        """How many jobs Slurm makes of it."""
        return self.parts[1] if self.parts else 1

    @property
    def gpu_hours(self) -> float:
        """What it takes at most, in one attempt."""
        return self.tasks * self.nodes * self.gpus_per_node * self.hours


class ClusterPlan(Strict):
    """The whole DAG of a run."""

    run: str
    site: str
    jobs: tuple[Job, ...]
    """In an order in which each comes after those it waits for."""

    def of_stage(self, stage: str) -> list[Job]:
        """The jobs of a stage."""
        return [job for job in self.jobs if job.stage == stage]

    def job(self, name: str) -> Job:
        """A job by its name."""
        return next(job for job in self.jobs if job.name == name)


def make_cluster_plan(
    recipe: Recipe, site: Site, root: Path, python: str, stages: Collection[str] | None = None
) -> ClusterPlan:
    """Plan the jobs of a run.

    Args:
        root: the run directory, absolute; a directory that all nodes see.
        python: the interpreter that has reasonforge, on every node.
        stages: those that are left to do; None for all.
    Raises RequestError for what neither the site nor a batch script can express.
    """
    if set(str(root)) & set("%\n\\"):
        raise RequestError(
            str(root), "Slurm gives %, \\ and line breaks in paths a meaning", "choose another --runs-dir"
        )
    left = [name for name in recipe.order() if stages is None or name in stages]
    jobs: list[Job] = []
    for name in left:
        inputs = {ref.stage for ref in recipe.stages[name].input_refs()}
        after = tuple(sorted(inputs.intersection(left)))
        jobs += _jobs(name, recipe.stages[name], site, root, python, after)
    return ClusterPlan(run=root.name, site=site.name, jobs=tuple(jobs))


def is_submitted(run: RunDirectory) -> bool:
    """Whether a run was ever sent to a cluster."""
    return (run.root / FOLDER / "plan.json").exists()


def load_cluster_plan(root: Path) -> ClusterPlan:
    """Read the plan that a run follows. Raises RequestError where it was never submitted."""
    path = root / FOLDER / "plan.json"
    if not path.exists():
        raise RequestError(
            str(root), "this run was not submitted to a cluster", "reasonforge submit RECIPE --site SITE"
        )
    return ClusterPlan.model_validate_json(path.read_bytes())


def comment(root: Path) -> str:
    """How a run's jobs are known in the queue."""
    return f"reasonforge {root}"


def _jobs(name: str, stage: Stage, site: Site, root: Path, python: str, after: tuple[str, ...]) -> Iterator[Job]:
    count = stage.resources.array
    if count == 1:
        yield _job(name, name, stage, site, root, python, after, None)
        return
    if not stage.divisible:
        raise RequestError(
            f"stages.{name}.resources.array", f"is {count}, but a {stage.type} stage cannot be divided", "1"
        )
    arrays = [(first, min(site.max_array, count - first)) for first in range(0, count, site.max_array)]
    names = [f"{name}.parts" if number == 0 else f"{name}.parts-{number + 1}" for number in range(len(arrays))]
    for job_name, parts in zip(names, arrays, strict=True):
        yield _job(job_name, name, stage, site, root, python, after, parts)
    yield _job(name, name, stage, site, root, python, tuple(names), None)


def _job(
    job_name: str,
    name: str,
    stage: Stage,
    site: Site,
    root: Path,
    python: str,
    after: tuple[str, ...],
    parts: tuple[int, int] | None,
) -> Job:
    placement, wanted = site.placement(name, stage), stage.resources
    finishing = parts is None and wanted.array > 1
    gpus = 0 if finishing else wanted.gpus_per_node
    partition = site.partitions[str(placement.partition)]
    _check(name, stage, site)
    tasks = gpus if stage.parallel and gpus else 1
    wrapped = _wrap(name, site, placement, root, python)
    srun = ["srun", f"--nodes={wanted.nodes}", f"--ntasks={wanted.nodes * tasks}"]
    srun += [f"--ntasks-per-node={tasks}", f"--cpus-per-task={wanted.cpus_per_task}"]
    srun += ["--kill-on-bad-exit=1", "--unbuffered", *(["--label"] if tasks * wanted.nodes > 1 else [])]
    return Job(
        name=job_name,
        stage=name,
        parts=parts,
        after=after,
        step=(*srun, *wrapped.srun_arguments, *wrapped.command),
        environment=dict(wrapped.environment),
        secrets=site.secrets,
        nodes=wanted.nodes,
        gpus_per_node=gpus,
        hours=wanted.hours,
        save_s=site.save_s,
        retries=site.retries,
        script=render(
            root / FOLDER,
            python,
            _parameters(job_name, root, stage, site, placement, partition, gpus, tasks),
            parts[1] if parts else None,
        ),
    )


def _check(name: str, stage: Stage, site: Site) -> None:
    """What no job can be made of, whatever the cluster."""
    wanted = stage.resources
    where = f"stages.{name}.resources"
    if wanted.nodes > 1 and not stage.parallel:
        raise RequestError(f"{where}.nodes", f"is {wanted.nodes}, but a {stage.type} stage runs on one node", "1")
    if wanted.hours * 3600 < 2 * site.save_s + 60:
        raise RequestError(
            f"{where}.hours",
            f"{wanted.hours * 60:.0f} min leave no time for work: a stage is told to save itself {site.save_s} s "
            "before the end, or up to 60 s earlier",
            f"{math.ceil((2 * site.save_s + 60) / 60)} min or more, or a smaller save_s in the site",
        )


def _wrap(name: str, site: Site, placement: Placement, root: Path, python: str) -> Wrapped:
    """The stage's command in the site's runtime."""
    command = [python if placement.image is None else "python3", "-m", "recipes.run_stage", str(root), name]
    environment = site.environment | (OFFLINE if site.offline else {})
    mounts = (str(root), *site.mounts)
    runtime = placement.runtime or site.runtime
    return runtime.wrap(command, placement.image, mounts, environment, str(root), tuple(site.secrets))


def _parameters(
    job_name: str,
    root: Path,
    stage: Stage,
    site: Site,
    placement: Placement,
    partition: Partition,
    gpus: int,
    tasks: int,
) -> dict[str, Any]:
    """submitit's names of what sbatch is told."""
    wanted = stage.resources
    gres = f"gpu:{partition.gpu_type}:{gpus}" if partition.gpu_type else f"gpu:{gpus}"
    more = {"requeue": True} if site.requeue else {"no-requeue": True}
    return {
        "job_name": f"{root.name}.{job_name}",
        "partition": placement.partition,
        "account": placement.account,
        "qos": placement.qos,
        "constraint": placement.constraint,
        "time": math.ceil(wanted.hours * 60),
        "nodes": wanted.nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": wanted.cpus_per_task,
        "mem": None if wanted.memory_gb is None else f"{math.ceil(wanted.memory_gb * 1024)}M",
        "gres": gres if gpus else None,
        "exclusive": True if partition.whole_nodes else None,
        "signal_delay_s": site.save_s,
        "array_parallelism": site.array_at_once,
        "setup": list(site.prelude) or None,
        "comment": comment(root),
        "additional_parameters": more,
    }
