"""Trains with NeMo 2: from a directory of NeMo 2 and a tokens artifact to a directory of NeMo 2, in every process of a
stage at once. The stage `distill` calls `train`, in NeMo's environment.
"""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from recipes.engines.megatron import training
from recipes.engines.megatron.batches import Batches
from recipes.engines.megatron.metrics import Run
from recipes.engines.megatron.start import Start
from recipes.engines.nemo.callbacks import watcher
from recipes.engines.nemo.data import tokens_module
from recipes.engines.nemo.options import NeMoEngine
from recipes.stage import StageContext


def train(engine: NeMoEngine, context: StageContext) -> dict[str, Any]:
    """See `recipes.engines.megatron.training.train`."""
    return training.train(engine, context, partial(_fit, engine), _write)


def _fit(
    engine: NeMoEngine, run: Run, context: StageContext, held_out: Batches | None, start: Start, store: Any
) -> None:
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
    data = tokens_module(run.batches, held_out, engine)
    recipe = training_recipe(
        engine,
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
    # It copies into weights of 32 bits, which torch refuses while gradients are recorded. (Bridge itself takes care.)
    trainer.strategy.load_optimizer_state_dict = torch.no_grad()(trainer.strategy.load_optimizer_state_dict)
    if engine.lora is not None:  # a training that was resumed notes its last checkpoint as the model (WrappedAdapterIO)
        work.keywords["resume"]._get_base_model_path_for_adapter = lambda *_: context.path("model")
    trainer.callbacks.append(watcher(run))  # not through NeMo's recipe, which copies all that it is given
    work()
    torch.distributed.barrier()


def _write(final: Path, model: Path, out: Path) -> None:
    """The last weights, with the context of the model that went in, which is still right."""
    training.link_tree(final / "weights", out / "weights")
    shutil.copytree(model / "context", out / "context")
