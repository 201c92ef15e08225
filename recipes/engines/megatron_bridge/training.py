"""Trains with Megatron-Bridge: from a directory of Bridge and a tokens artifact to a directory of Bridge, in every
process of a stage at once. The stage `distill` calls `train`, in Bridge's environment.
"""

import shutil
import signal
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from checkpoints_conversion.megatron import CARRIED
from recipes.engines.megatron import training
from recipes.engines.megatron.batches import Batches, rounded_up
from recipes.engines.megatron.metrics import Run
from recipes.engines.megatron.start import Start
from recipes.engines.megatron_bridge.callbacks import ForwardStep, watcher
from recipes.engines.megatron_bridge.data import tokens_provider
from recipes.engines.megatron_bridge.models import RUN_CONFIG, weights_of
from recipes.engines.megatron_bridge.options import MegatronBridgeEngine
from recipes.ranks import Rank
from recipes.stage import StageContext


def train(engine: MegatronBridgeEngine, context: StageContext) -> dict[str, Any]:
    """See `recipes.engines.megatron.training.train`."""
    return training.train(engine, context, partial(_fit, engine), _write)


def _fit(
    engine: MegatronBridgeEngine, run: Run, context: StageContext, held_out: Batches | None, start: Start, store: Any
) -> None:
    """Bridge's own loop, which `finetune` and `distill` call too, with our data and our callbacks."""
    from megatron.bridge.training.gpt_step import forward_step, forward_step_modelopt
    from megatron.bridge.training.pretrain import pretrain

    from recipes.engines.megatron_bridge.configuration import training_config

    config = training_config(
        engine,
        context.path("model"),
        gpus=run.rank.size,
        scratch=context.scratch,
        sequence_length=_sequence_length(run.batches, held_out),
        seed=context.seed,
        teacher=context.path("teacher") if "teacher" in context.inputs else None,
        checkpoint=None if start.checkpoint is None else Path(start.checkpoint),
    )
    config.dataset = tokens_provider(run.batches, held_out, engine, engine.parallelism.data(run.rank.size))
    config.train.train_iters = run.end  # the schedule is that of all steps
    config.train.eval_iters = 0 if held_out is None else held_out.batches
    config.train.exit_signal = signal.SIGWINCH  # Bridge takes a signal for itself: not one that tells us to stop
    forward = ForwardStep(forward_step if engine.distillation is None else forward_step_modelopt)
    _join(config, run.rank, store)
    watch = watcher(run, forward)
    try:
        pretrain(config, forward, callbacks=[watch])
    finally:
        watch.close()


def _sequence_length(batches: Batches, held_out: Batches | None) -> int:
    """Of the longest sequence that the model gets."""
    longest = batches.length or rounded_up(int(batches.rows.lengths.max()), batches.multiple)
    return max(longest, 0 if held_out is None else held_out.batch_length(0))


def _join(config: Any, rank: Rank, store: Any) -> None:
    """torch.distributed on the store where the processes met; Bridge would open one of its own at the same port."""
    import torch

    torch.cuda.set_device(rank.local)
    torch.distributed.init_process_group(
        config.dist.distributed_backend,
        store=store,
        rank=rank.number,
        world_size=rank.size,
        timeout=timedelta(minutes=config.dist.distributed_timeout_minutes),
    )


def _write(final: Path, model: Path, out: Path) -> None:
    """The last weights, with what the directory that went in says of the model, which is still right.

    Bridge's own run_config.yaml tells of the training too, and knows the model's tokenizer no more.
    """
    trained, before = weights_of(final), weights_of(model)
    weights = out / trained.name
    training.link_tree(trained, weights)
    for path in weights.glob("modelopt*"):  # of a distillation, whose teacher is not there any more
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (weights / RUN_CONFIG).unlink()  # which is a second name of the one in the scratch
    shutil.copyfile(before / RUN_CONFIG, weights / RUN_CONFIG)
    shutil.copytree(before / "tokenizer", weights / "tokenizer")
    for path in final.glob("latest_*"):
        shutil.copyfile(path, out / path.name)
    shutil.copytree(model / CARRIED, out / CARRIED)
