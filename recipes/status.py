"""What state each stage of a run is in, from receipts, locks and events. `reasonforge status` shows it."""

from pathlib import Path
from typing import Any, Literal

from reasonforge.artifacts import RECEIPT, load
from reasonforge.errors import RequestError
from recipes.recipe import Recipe, load_resolved
from recipes.run_directory import RunDirectory
from recipes.run_stage import is_done, open_job, try_lock

State = Literal["done", "running", "failed", "interrupted", "pending", "outdated", "damaged"]


def run_status(run: RunDirectory) -> list[dict[str, Any]]:
    """One entry a stage, in order: name, state, and what is known of it (progress, wall_s, attempt, error).

    Raises RequestError where the directory is no run.
    """
    if not run.recipe.exists():
        raise RequestError(str(run.root), "no recipe.json, so no run", "start one with: reasonforge run RECIPE")
    recipe = load_resolved(run.recipe)
    last_event = {event["stage"]: event for event in run.read_events() if "stage" in event}
    return [_stage_status(run, recipe, name, last_event.get(name)) for name in recipe.order()]


def _stage_status(run: RunDirectory, recipe: Recipe, name: str, event: dict[str, Any] | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"stage": name, "type": recipe.stages[name].type, "state": "pending"}
    if is_locked(run.stage_lock(name)):
        return entry | {"state": "running", "progress": run.read_progress(name)}
    if (run.stage(name) / RECEIPT).exists():
        entry |= _published(run, name)
    if entry["state"] in ("pending", "outdated") and event is not None:
        if event["event"] == "stage_failed":
            return entry | {"state": "failed", "error": event["error"]}
        if event["event"] in ("stage_started", "stage_interrupted"):
            return entry | {"state": "interrupted", "progress": run.read_progress(name)}
    return entry


def _published(run: RunDirectory, name: str) -> dict[str, Any]:
    """A stage whose artifact is there: done, outdated by a changed recipe or input, or damaged."""
    try:
        cost = load(run.stage(name)).receipt.cost
    except RequestError as error:
        return {"state": "damaged", "error": str(error)}
    try:
        done = is_done(open_job(run, name))
    except RequestError:  # an input is missing or damaged, and its own entry says so
        done = False
    return {
        "state": "done" if done else "outdated",
        "wall_s": cost.wall_s,
        "cpu_s": cost.cpu_s,
        "attempt": cost.attempt,
    }


def is_locked(path: Path) -> bool:
    """Whether a living process holds a lock file."""
    if not path.exists():
        return False
    with open(path) as handle:
        return not try_lock(handle, shared=True)
