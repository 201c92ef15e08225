"""What is checked before anything is queued: the plan against the site, the site against Slurm, files and secrets.

`submit` and `plan --check` call it. All that is wrong is said at once, a line each.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from data_prep.generation import HFEngine, SeveralEngines, VLLMEngine
from reasonforge.display import data_size
from reasonforge.errors import RequestError
from reasonforge.processes import finish
from recipes.engines.megatron.compatibility import check_image
from recipes.engines.megatron.options import MegatronEngine
from recipes.preflight.layout import errors
from recipes.preflight.stages import Need, needs
from recipes.preflight.table import GIB
from recipes.recipe import Recipe
from recipes.stage import Stage
from recipes.stages.base_model import BaseModelStage, CheckpointSource
from slurm.plan import ClusterPlan, Job
from slurm.site import Partition, Placement, Site, read_secrets

PATIENCE_S = 30.0


def check(plan: ClusterPlan, recipe: Recipe, site: Site, root: Path) -> None:
    """Everything; `root` is the run directory. Raises one RequestError with a line for each problem."""
    problems = [*site_problems(recipe, site, plan), *file_problems(recipe, site, plan)]
    problems += disk_problems(recipe, site, plan, root)
    if not problems:
        problems = list(slurm_problems(plan, recipe, site))
    raise_all(problems)


def raise_all(problems: list[RequestError]) -> None:
    """Raise the problems as one error; nothing where there are none."""
    if problems:
        first = problems[0]
        first.args = ("\n".join(map(str, problems)),)
        raise first


def site_problems(recipe: Recipe, site: Site, plan: ClusterPlan) -> Iterator[RequestError]:
    """What the plan's stages want and the site's partitions do not have. Pure."""
    for name in dict.fromkeys(job.stage for job in plan.jobs):
        stage = recipe.stages[name]
        partition_name = str(site.placement(name, stage).partition)
        yield from _beyond(f"stages.{name}.resources", partition_name, site.partitions[partition_name], stage.resources)
    planned = {job.stage for job in plan.jobs}
    for name in [name for name in recipe.stages if name in planned]:
        yield from _image_problems(f"stages.{name}", recipe.stages[name], site.placement(name, recipe.stages[name]))
    for name, need in stage_needs(recipe, site).items():
        wrong = errors(list(need.problems))
        if name in planned and wrong:
            yield from (problem.error(f"stages.{name}") for problem in wrong)
            if need.remedy and need.gpu is None:
                yield RequestError(f"stages.{name}", "this layout cannot train", need.remedy)
        if name in planned and need.gpu is not None and not need.gpu.fits:
            largest = max(need.gpu.rows, key=lambda row: row.bytes)
            yield RequestError(
                f"stages.{name}",
                f"takes about {need.gpu.total / GIB:.0f} GiB of a GPU that has {need.gpu.capacity / GIB:.0f} "
                f"({largest.component}: {largest.bytes / GIB:.0f})",
                need.remedy,
            )
        given = recipe.stages[name].resources.memory_gb
        if name in planned and need.conversion is not None and given is not None and need.conversion.cpu > given * GIB:
            yield RequestError(
                f"stages.{name}.resources.memory_gb",
                f"is {given:g}, but a conversion takes {data_size(need.conversion.cpu)}",
                "ask for 1, with room for Python",
            )


def _image_problems(where: str, stage: Stage, placement: Placement) -> Iterator[RequestError]:
    """What the image's name tells: versions that the engine is not for, or that do not go together."""
    engine = getattr(stage, "engine", None)
    if isinstance(engine, MegatronEngine) and placement.image is not None:
        problem = check_image(placement.image, engine)
        if problem is not None:
            yield RequestError(f"{where}: {problem.where}", problem.problem, problem.remedy)


def stage_needs(recipe: Recipe, site: Site) -> dict[str, Need]:
    """What the stages take of memory and disk where the site puts them; see `recipes.preflight.stages`."""
    memory: dict[str, float | None] = {}
    for name, stage in recipe.stages.items():
        if stage.resources.gpus_per_node:
            memory[name] = site.partitions[str(site.placement(name, stage).partition)].gpu_memory_gb
    return needs(recipe, memory)


def disk_problems(recipe: Recipe, site: Site, plan: ClusterPlan, root: Path) -> Iterator[RequestError]:
    """Conversions whose results the run directory's file system cannot hold."""
    planned = {job.stage for job in plan.jobs}
    sizes = {
        name: need.conversion.result
        for name, need in stage_needs(recipe, site).items()
        if need.conversion is not None and name in planned
    }
    there = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if sum(sizes.values()) > free:
        yield RequestError(
            f"stages {', '.join(sizes)}",
            f"their results need {data_size(sum(sizes.values()))}, but the file system of {there} has "
            f"{data_size(free)} free",
            "make room, or choose another --runs-dir",
        )


def _beyond(where: str, name: str, partition: Partition, wanted: object) -> Iterator[RequestError]:
    limits = {
        "nodes": min(partition.nodes, partition.max_nodes or partition.nodes),
        "gpus_per_node": partition.gpus_per_node,
        "cpus_per_task": partition.cpus_per_node,
        "memory_gb": partition.memory_gb,
        "hours": partition.max_hours,
    }
    for key, limit in limits.items():
        value = getattr(wanted, key)
        if value is not None and limit is not None and value > limit:
            yield RequestError(
                f"{where}.{key}", f"is {value:g}, but partition {name} has {limit:g}", f"{limit:g} or less"
            )


def file_problems(recipe: Recipe, site: Site, plan: ClusterPlan) -> Iterator[RequestError]:
    """Images, files from outside the run, secrets and models that a node without a network could not get."""
    try:
        read_secrets(site.secrets)
    except RequestError as error:
        yield error
    for name in dict.fromkeys(job.stage for job in plan.jobs):
        stage = recipe.stages[name]
        image = site.placement(name, stage).image
        if image is not None and image.startswith("/") and not Path(image).exists():
            yield RequestError(f"stage {name}: image {image}", "no such file", "build it, or name another in the site")
        for path in stage.external_files:
            if not path.exists():
                yield RequestError(f"stage {name}: {path}", "no such file", "the recipe names it")
        if isinstance(stage, BaseModelStage) and isinstance(stage.source, CheckpointSource):
            config = Path(stage.source.path) / "config.json"
            if not config.is_file():
                yield RequestError(
                    f"stages.{name}.source.path",
                    f"{config}: no such file",
                    "download the model where there is a network, and name its directory",
                )
        if site.offline:
            yield from _beyond_reach(f"stages.{name}", stage)


def _beyond_reach(where: str, stage: Stage) -> Iterator[RequestError]:
    """Models that an engine would fetch by their names."""
    engine = getattr(stage, "engine", None)
    for one in engine.engines if isinstance(engine, SeveralEngines) else [engine]:
        if isinstance(one, HFEngine | VLLMEngine) and one.model_path and not Path(one.model_path).is_dir():
            yield RequestError(
                f"{where}.engine.model_path",
                f"{one.model_path} is no directory, and the site is offline",
                "download the model where there is a network, and name its directory",
            )


def slurm_problems(plan: ClusterPlan, recipe: Recipe, site: Site) -> Iterator[RequestError]:
    """What Slurm itself says: accounts and QOS that are not ours, and each script by `sbatch --test-only`."""
    yield from _associations(plan, recipe, site)
    for job in plan.jobs:
        refusal = _test(job)
        if refusal is not None:
            yield RequestError(
                f"stage {job.stage}", f"sbatch --test-only: {refusal}", "change its resources or the site"
            )


def _associations(plan: ClusterPlan, recipe: Recipe, site: Site) -> Iterator[RequestError]:
    """Slurm takes a job with an unknown account where limits are not enforced, and lets it wait for ever."""
    user = os.environ.get("USER") or finish(["id", "-un"], PATIENCE_S).stdout.strip()
    command = ["sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={user}", "format=Account,QOS"]
    done = finish(command, PATIENCE_S)
    rows = [line.split("|") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    if not rows:
        return  # no accounting, or none that we may see: --test-only has to do
    accounts = {account for account, _ in rows}
    allowed = {qos for _, several in rows for qos in several.split(",") if qos}
    for name in dict.fromkeys(job.stage for job in plan.jobs):
        placement = site.placement(name, recipe.stages[name])
        for key, value, known in (("account", placement.account, accounts), ("qos", placement.qos, allowed)):
            if value is not None and known and value not in known:
                yield RequestError(
                    f"stage {name}: {key} {value}",
                    f"not one of yours ({user})",
                    f"choose one of: {', '.join(sorted(known))}",
                )


def _test(job: Job) -> str | None:
    """What sbatch has against a script; None where it would take it."""
    with tempfile.NamedTemporaryFile("w", suffix=".sbatch", encoding="utf-8") as handle:
        handle.write(job.script)
        handle.flush()
        done = finish(["sbatch", "--test-only", handle.name], PATIENCE_S)
    if done.returncode == 0:
        return None
    lines = [
        line.removeprefix("sbatch: error: ").removeprefix("allocation failure: ") for line in done.stderr.splitlines()
    ]
    return "; ".join(line.strip() for line in lines if line.strip()) or f"exit code {done.returncode}"
