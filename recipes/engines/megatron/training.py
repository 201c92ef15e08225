"""What a training is beside its framework: from a checkpoint and a tokens artifact to a checkpoint, in every process
of a stage at once. Each engine's own `training` module calls `train` with the part that is its own.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from reasonforge.errors import RequestError
from reasonforge.files import write_jsonl
from recipes import interruption
from recipes.engines.megatron.batches import Batches, last_step, training_batches, validation_batches
from recipes.engines.megatron.checkpoints import Checkpoints
from recipes.engines.megatron.compatibility import check_installed
from recipes.engines.megatron.metrics import Log, Run
from recipes.engines.megatron.options import MegatronEngine
from recipes.engines.megatron.rows import map_rows
from recipes.engines.megatron.start import Start, decide_start, meet, token_files
from recipes.stage import StageContext

METRICS = "metrics.jsonl"
KEPT = ("tensorboard", "wandb", "profile")
"""What a training writes into its scratch beside that, and its artifact keeps: also W&B's files, for it may be offline,
and what a profiler recorded."""

Fit = Callable[[Run, StageContext, Batches | None, Start, Any], None]
"""Trains: what to train, its stage, the held-out batches, where it starts, and the store that the processes met at."""

Write = Callable[[Path, Path, Path], None]
"""Makes a checkpoint of the engine's kind: the final weights' directory, the model that went in, where it goes."""


def train(engine: MegatronEngine, context: StageContext, fit: Fit, write: Write) -> dict[str, Any]:
    """Train the input `model`, on the logits of `teacher` if there is one; in the first process write the result, with
    its metrics.jsonl, to `context.out`, and return counts.

    Killed, it goes on from the last whole checkpoint in the scratch. Told to stop, it saves one and raises Interrupted.
    Raises StageError where loss or gradient are no longer finite, RequestError where there is no GPU, or where a row
    does not fit into a sequence.

    Args:
        fit: trains, with the framework of the engine.
        write: makes the output of the last weights.
    """
    import torch

    if torch.cuda.device_count() == 0:
        raise RequestError(
            f"engine {engine.type}", "this machine has no GPU that torch can use", "take engine trl here"
        )
    check_installed(engine)
    _check_layout(engine, context.rank.size)
    checkpoints = Checkpoints(context.scratch / "checkpoints")
    store = meet(context.rank)
    start = decide_start(context, checkpoints, store)
    training, held_out = _batches(engine, context)
    end = last_step(training, engine)
    log = Log(context.scratch / METRICS, to=engine.log_to)
    if not start.finished:
        with context.progress("training", end, "steps") if context.rank.first else nullcontext() as progress:
            run = Run(engine, training, end, checkpoints, context.rank, log, progress)
            with interruption.deferred():
                fit(run, context, held_out, start, store)
        log.close()
    if not context.rank.first:
        return {}
    write(checkpoints.final, context.path("model"), context.out)
    return _hand_over(context, training, end)


def _check_layout(engine: MegatronEngine, processes: int) -> None:
    """What preflight has found where there was a site: that the model and the batch fit the GPUs that there are."""
    layout = engine.parallelism
    if processes % layout.model_gpus:
        raise RequestError(
            "engine.parallelism", f"a model takes {layout.model_gpus} GPUs, and there are {processes}", "start as many"
        )
    at_once = engine.micro_batch_size * layout.data(processes)
    if engine.batch_size % at_once:
        raise RequestError(
            "engine.batch_size",
            f"is {engine.batch_size}, but {layout.data(processes)} copies of the model take {engine.micro_batch_size} "
            "sequences each at a time",
            f"a multiple of {at_once}",
        )


def _batches(engine: MegatronEngine, context: StageContext) -> tuple[Batches, Batches | None]:
    """What is trained on, and what is validated on."""
    rows = {name: map_rows(tokens, context.scratch / name) for name, tokens in token_files(context).items()}
    training = training_batches(rows["rows"], engine, context.seed)
    if engine.validate_every is None:
        return training, None
    if "held-out" not in rows:
        raise RequestError(
            "engine.validate_every",
            f"is {engine.validate_every}, but the tokens have no held-out rows",
            "let the tokenize stage hold some out, or leave validate_every out",
        )
    return training, validation_batches(rows["held-out"], engine)


def _hand_over(context: StageContext, training: Batches, end: int) -> dict[str, Any]:
    """Put the metrics beside the weights, and count."""
    out, log = context.out, Log(context.scratch / METRICS)
    write_jsonl(out / METRICS, log.read())
    for name in KEPT:
        if (context.scratch / name).exists():
            link_tree(context.scratch / name, out / name)
    losses = [row["loss"] for row in log.read() if "loss" in row]
    learned = sum(int(training.rows.learned[row]) for step in range(end) for row in training.batch_rows(step))
    return {"steps": end, "sequences": end * training.size, "tokens": learned, "loss": losses[-1]}


def link_tree(source: Path, destination: Path) -> None:
    """Give a directory's files second names, so that a kill before the publication loses nothing; what an earlier
    attempt left there is replaced. Symbolic links are left out: W&B has one to its last run."""
    shutil.rmtree(destination, ignore_errors=True)
    shutil.copytree(source, destination, copy_function=_link, ignore=_symbolic_links)


def _symbolic_links(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if os.path.islink(os.path.join(directory, name))]


def _link(source: str, destination: str) -> None:
    """One file under two names, so that a kill before the publication loses nothing; a copy where none can have two."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)
