"""The `local` launcher: the stages of a run one after the other on this machine, each a process of its own."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from subprocess import Popen, TimeoutExpired
from typing import Any, Literal

from reasonforge.artifacts import RECEIPT
from reasonforge.errors import RequestError, StageError, nearest
from reasonforge.files import write_json
from reasonforge.processes import start_logged
from recipes.interpreters import interpreter, variables_for
from recipes.interruption import EXIT_INTERRUPTED
from recipes.plan import make_plan, stage_command
from recipes.recipe import Recipe, save_resolved
from recipes.run_directory import RunDirectory
from recipes.run_stage import is_done, open_job, try_lock
from recipes.stage import Stage

POLL_S = 0.1


@dataclass(frozen=True)
class Update:
    """What the launcher tells whoever shows the run: a stage was skipped, goes on, is done or failed."""

    stage: str
    state: Literal["skipped", "running", "done", "failed"]
    elapsed_s: float = 0.0
    progress: dict[str, Any] | None = None


def select(recipe: Recipe, first: str | None, last: str | None, force: Sequence[str]) -> list[str]:
    """The stages to run, in order: those that `first` leads to (itself included) and that lead to `last`.

    Raises RequestError for a name that the recipe lacks, and for a forced stage that is not among them.
    """
    for option, name in [("--from", first), ("--until", last), *(("--force", name) for name in force)]:
        if name is not None and name not in recipe.stages:
            raise RequestError(f"{option} {name}", "the recipe has no such stage", nearest(name, recipe.stages))
    chosen = [
        name
        for name in recipe.order()
        if (first is None or name == first or first in recipe.ancestors(name))
        and (last is None or name == last or name in recipe.ancestors(last))
    ]
    for name in force:
        if name not in chosen:
            raise RequestError(f"--force {name}", "left out by --from or --until", "widen them, or do not force it")
    if not chosen:
        raise RequestError(f"--from {first} --until {last}", "no stage lies between them", "swap them")
    return chosen


def check_outside_inputs(run: RunDirectory, recipe: Recipe, chosen: Sequence[str]) -> None:
    """Raises RequestError where a chosen stage needs one that is neither chosen nor done."""
    for name in chosen:
        for ref in recipe.stages[name].input_refs():
            if ref.stage not in chosen and not (run.stage(ref.stage) / RECEIPT).exists():
                raise RequestError(
                    f"stage {name}",
                    f"needs {ref.stage}, which is left out and not done yet",
                    f"start from {ref.stage} or earlier",
                )


def launch(
    run: RunDirectory, recipe: Recipe, chosen: Sequence[str], force: Sequence[str], show: Callable[[Update], None]
) -> None:
    """Run the chosen stages in order. Stages whose artifact is there already are skipped.

    Raises StageError or RequestError with the failing stage's own line; KeyboardInterrupt after stopping the stage.
    """
    with exclusive(run):
        save_resolved(recipe, run.recipe)
        write_json(run.plan, make_plan(recipe))
        run.record("run_started", stages=list(chosen))
        for name in chosen:
            if name not in force and is_done(open_job(run, name)):
                show(Update(name, "skipped"))
                continue
            _run_one(run, name, recipe.stages[name], name in force, show)
        run.record("run_finished")


@contextmanager
def exclusive(run: RunDirectory) -> Iterator[None]:
    """Hold the run directory for one launcher; the lock goes with the process. RequestError where it is taken."""
    run.root.mkdir(parents=True, exist_ok=True)
    with open(run.lock, "a+") as handle:
        if not try_lock(handle):
            raise RequestError(
                str(run.root), "another reasonforge is running here", "wait for it, or give this run another --name"
            )
        yield


def _run_one(run: RunDirectory, name: str, stage: Stage, force: bool, show: Callable[[Update], None]) -> None:
    run.progress(name).unlink(missing_ok=True)
    started = time.monotonic()
    command = stage_command(run.root, name, interpreter(stage.environment))
    command += ["--with-parent", str(os.getpid()), *(["--force"] if force else [])]
    process = start_logged(command, run.log(name), variables_for(stage))
    try:
        while process.poll() is None:
            show(Update(name, "running", time.monotonic() - started, run.read_progress(name)))
            time.sleep(POLL_S)
    except BaseException:
        _stop(process)
        raise
    elapsed = time.monotonic() - started
    if process.returncode == 0:
        show(Update(name, "done", elapsed, run.read_progress(name)))
        return
    show(Update(name, "failed", elapsed))
    raise _failure(run, name, process.returncode)


def _stop(process: "Popen[bytes]") -> None:
    """Ask a stage and its workers to end, then make them; what they had saved stays."""
    for number, patience_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(TimeoutExpired):
            process.wait(patience_s)
            return


def _failure(run: RunDirectory, name: str, returncode: int) -> StageError:
    """The error of a stage that ended badly, in its own words where it left some."""
    *_, last = [{}, *(event for event in run.read_events() if event.get("stage") == name)]
    if returncode < 0:
        what = f"killed by {signal.Signals(-returncode).name}; run again to go on from where it was"
    elif returncode == EXIT_INTERRUPTED:
        what = "told to stop by a signal; run again to go on from where it was"
    else:
        what = last.get("error", f"exit code {returncode}")
    error = StageError(f"stage {name}: {what} (log: {run.log(name)})")
    error.exit_code = 2 if returncode == 2 else 1
    return error
