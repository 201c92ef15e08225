"""What Slurm knows of a submitted run's failures, for `explain`: sacct's records and the logs of the batch scripts."""

from dataclasses import dataclass, field
from pathlib import Path

from reasonforge.errors import StageError
from recipes.run_directory import RunDirectory
from slurm import commands
from slurm.explain.engine import Facts
from slurm.plan import FOLDER, load_cluster_plan
from slurm.submit import submitted_ids


@dataclass
class JobFacts:
    """Of one stage's jobs."""

    facts: list[Facts] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)


def failures(run: RunDirectory) -> dict[str, JobFacts]:
    """By stage, the last record of each job (or task of an array) that did not end well, and its script's log.

    Nothing where the accounting does not answer: the run's own logs then have to do.
    """
    plan, ids = load_cluster_plan(run.root), submitted_ids(run)
    stages = {ids[job.name]: job.stage for job in plan.jobs if job.name in ids}
    try:
        last = {attempt.id: attempt for attempt in commands.sacct(sorted(stages))}
    except StageError:
        return {}
    found: dict[str, JobFacts] = {}
    for number, attempt in last.items():
        stage = stages.get(number.partition("_")[0])
        if stage is None or attempt.state in ("COMPLETED", "RUNNING", "PENDING", "REQUEUED"):
            continue
        known = found.setdefault(stage, JobFacts())
        known.facts.append(Facts(attempt.state, attempt.exit_code, "", attempt.nodes))
        log = run.root / FOLDER / f"{number}_0_log.out"
        known.logs += [log] if log.is_file() else []
    return found
