"""Trains with NeMo 2: from a directory of NeMo 2 and a tokens artifact to a directory of NeMo 2, in every process of a
stage at once. The stage `distill` calls `train`, in NeMo's environment.
"""

import json
import os
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from reasonforge.errors import RequestError
from reasonforge.files import write_jsonl
from recipes import interruption
from recipes.engines.nemo.callbacks import Log, Run, watcher
from recipes.engines.nemo.checkpoints import Checkpoints
from recipes.engines.nemo.compatibility import check_installed
from recipes.engines.nemo.data import Batches, last_step, tokens_module, training_batches, validation_batches
from recipes.engines.nemo.options import NeMoEngine
from recipes.engines.nemo.rows import map_rows, unfold
from recipes.ranks import Rank, meeting_point
from recipes.stage import StageContext

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"
_PATIENCE = timedelta(hours=2)
"""How long the other processes wait for the first one, which writes the tokens as flat files meanwhile."""


@dataclass(frozen=True)
class Start:
    """What the first process decides for all: they must not find different things on the disk."""

    finished: bool
    """Whether an earlier attempt trained to the end."""
    checkpoint: str | None
    """Where to go on; None for the model's own weights."""


def train(engine: NeMoEngine, context: StageContext) -> dict[str, Any]:
    """Train the input `model`, on the logits of `teacher` if there is one; in the first process write the result, with
    its metrics.jsonl, to `context.out`, and return counts.

    Killed, it goes on from the last whole checkpoint in the scratch. Told to stop, it saves one and raises Interrupted.
    Raises StageError where loss or gradient are no longer finite, RequestError where there is no GPU, or where a row
    does not fit into a sequence.
    """
    import torch

    if torch.cuda.device_count() == 0:
        raise RequestError("engine nemo", "this machine has no GPU that torch can use", "take engine trl here")
    check_installed(engine)
    _check_layout(engine, context.rank.size)
    checkpoints = Checkpoints(context.scratch / "checkpoints")
    store = _meet(context.rank)
    start = _start(context, checkpoints, store)
    training, held_out = _batches(engine, context)
    end = last_step(training, engine)
    log = Log(context.scratch / METRICS, to=engine.log_to)
    if not start.finished:
        with context.progress("training", end, "steps") if context.rank.first else nullcontext() as progress:
            run = Run(engine, training, end, checkpoints, context.rank, log, progress)
            with interruption.deferred():
                _fit(run, context, held_out, start, store)
    if not context.rank.first:
        return {}
    return _hand_over(context, checkpoints, training, end)


def _check_layout(engine: NeMoEngine, processes: int) -> None:
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


def _meet(rank: Rank) -> Any:
    """Wait for the other processes; what comes back serves to tell them something, and torch.distributed later.

    NeMo and Lightning read the variables that torchrun sets, so they are set for them whoever started us.
    """
    from torch.distributed import PrefixStore, TCPStore

    host, port = meeting_point(rank)
    store = TCPStore(host, port, rank.size, rank.first, timeout=_PATIENCE, wait_for_workers=True)
    own: dict[str, object] = {
        "RANK": rank.number,
        "WORLD_SIZE": rank.size,
        "LOCAL_RANK": rank.local,
        "GROUP_RANK": rank.node,
    }
    own |= {"LOCAL_WORLD_SIZE": rank.per_node, "MASTER_ADDR": host, "MASTER_PORT": store.port}
    os.environ.update({name: str(value) for name, value in own.items()})
    return PrefixStore("reasonforge", store)


def _start(context: StageContext, checkpoints: Checkpoints, store: Any) -> Start:
    """Prepare the scratch in the first process, and let all know where to start. An error there is everybody's."""
    if context.rank.first:
        try:
            checkpoints.folder.mkdir(parents=True, exist_ok=True)
            checkpoints.discard_torn()
            for name, tokens in _token_files(context).items():
                if not (context.scratch / name).exists():
                    unfold(tokens, context.scratch / name)
        except RequestError as error:
            store.set("start", json.dumps({"error": [str(item) for item in error.args]}))
            raise
        last = checkpoints.last_whole()
        store.set("start", json.dumps({"finished": checkpoints.is_finished, "checkpoint": str(last) if last else None}))
    found = json.loads(store.get("start"))
    if "error" in found:
        raise RequestError("the first process", found["error"][0])
    return Start(**found)


def _token_files(context: StageContext) -> dict[str, Path]:
    """The parquet files of the tokens artifact, by the names of their flat twins in the scratch."""
    folder = context.path("tokens")
    held_out = folder / "held_out.parquet"
    return {"rows": folder / "tokens.parquet"} | ({"held-out": held_out} if held_out.exists() else {})


def _batches(engine: NeMoEngine, context: StageContext) -> tuple[Batches, Batches | None]:
    """What is trained on, and what is validated on."""
    rows = {name: map_rows(tokens, context.scratch / name) for name, tokens in _token_files(context).items()}
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


def _fit(run: Run, context: StageContext, held_out: Batches | None, start: Start, store: Any) -> None:
    """NeMo's own training, from NeMo's own recipe, with our data and our callbacks."""
    import fiddle
    import lightning.pytorch as pl
    import nemo_run
    import numpy
    import torch
    from lightning.fabric.plugins.environments import TorchElasticEnvironment
    from lightning.pytorch.callbacks import ModelCheckpoint
    from nemo import lightning as nl

    from recipes.engines.nemo.configuration import training_recipe

    if not hasattr(numpy, "product"):  # NumPy 2 has it no more, and megatron-core 0.15 saves with it
        setattr(numpy, "product", numpy.prod)  # noqa: B010 - types know only what there is
    pl.seed_everything(context.seed, verbose=False)
    data = tokens_module(run.batches, held_out, run.engine)
    recipe = training_recipe(
        run.engine,
        context.path("model"),
        gpus_per_node=run.rank.per_node,
        nodes=run.rank.nodes,
        scratch=context.scratch,
        data=data,
        teacher=context.path("teacher") if "teacher" in context.inputs else None,
    )
    recipe.trainer.plugins = [recipe.trainer.plugins, nemo_run.Config(TorchElasticEnvironment)]
    recipe.trainer.strategy.ddp.check_for_nan_in_grad = False  # callbacks look themselves, and name the rows
    recipe.trainer.callbacks.append(nemo_run.Config(ModelCheckpoint, save_top_k=0))  # callbacks save
    recipe.log = nemo_run.Config(nl.NeMoLogger, explicit_log_dir=str(context.scratch / "nemo"))
    if start.checkpoint is not None:
        recipe.resume = nemo_run.Config(nl.AutoResume, resume_from_path=start.checkpoint)
    else:
        recipe.resume.resume_if_exists = False
    work = fiddle.build(recipe)
    trainer = work.keywords["trainer"]
    trainer.strategy.store = store
    trainer.callbacks.append(watcher(run))  # not through NeMo's recipe, which copies all that it is given
    work()
    torch.distributed.barrier()


def _hand_over(context: StageContext, checkpoints: Checkpoints, training: Batches, end: int) -> dict[str, Any]:
    """Make the last weights the stage's output, with the context of the model that went in, which is still right."""
    out = context.out
    shutil.rmtree(out / "weights", ignore_errors=True)
    shutil.copytree(checkpoints.final / "weights", out / "weights", copy_function=_link)
    shutil.copytree(context.path("model") / "context", out / "context")
    log = Log(context.scratch / METRICS)
    write_jsonl(out / METRICS, log.read())
    if (context.scratch / TENSORBOARD).exists():
        shutil.copytree(context.scratch / TENSORBOARD, out / TENSORBOARD)
    losses = [row["loss"] for row in log.read() if "loss" in row]
    learned = sum(int(training.rows.learned[row]) for step in range(end) for row in training.batch_rows(step))
    return {"steps": end, "sequences": end * training.size, "tokens": learned, "loss": losses[-1]}


def _link(source: str, destination: str) -> None:
    """One file under two names, so that a kill before the publication loses nothing; a copy where none can have two."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)
