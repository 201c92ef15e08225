"""What happens beside a training in NeMo: metrics, checkpoints, validation, and when it stops.

`training` puts `watcher(...)` into NeMo's trainer. After each step all processes agree, in one all-reduce, on whether
one of them was told to stop and whether the numbers are still finite.
"""

import math
import time
from typing import Any

from recipes import interruption
from recipes.engines.megatron.health import agree, broken_at
from recipes.engines.megatron.metrics import Meter, Run
from recipes.engines.nemo.adapters import save_merged


def watcher(run: Run) -> Any:
    """The callback, for Lightning's hooks and for those of NeMo's Megatron steps."""
    import lightning.pytorch as pl
    import torch
    from nemo.lightning.megatron_parallel import CallbackMethods

    class Watcher(pl.Callback, CallbackMethods):  # type: ignore[misc]
        """See watcher."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            interruption.catch_signals()  # Lightning's own handler would end one process in the midst of a step
            if run.rank.first:
                run.log.resume(trainer.global_step)
            if run.progress:
                run.progress.resume(trainer.global_step)
            self.meter = Meter(run, pl_module.config)
            self.held_out = torch.zeros(2, dtype=torch.float64)

        def on_megatron_microbatches_end(self, step: Any, microbatch_outputs: list[Any]) -> None:
            self.outputs = microbatch_outputs or []
            if step.forward_only:
                for output in self.outputs:
                    self.held_out += output["loss_sum_and_ub_size"].detach().double().cpu()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            step = trainer.global_step
            found = trainer.callback_metrics
            loss, norm = (float(found.get(name, 0.0)) for name in ("reduced_train_loss", "grad_norm"))
            stop, broken = agree(interruption.requested(), not (math.isfinite(loss) and math.isfinite(norm)))
            if broken:
                raise broken_at(run, step - 1, self.outputs)
            self.meter.losses.append(loss)
            if step == 1 or step % run.engine.log_every == 0 or step >= run.end:
                row = self.meter.row(step, float(found.get("lr", 0.0)), norm)
                if run.rank.first:
                    run.log.add(row)
            if run.progress:
                run.progress.set(step, f"loss {loss:.3f}")
            if step >= run.end:
                trainer.should_stop = True
            elif stop or step % run.engine.save_every == 0:
                save(trainer, run, step)
            if stop and step < run.end:
                finish_saves(trainer)
                raise interruption.Interrupted

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            self.held_out = torch.zeros(2, dtype=torch.float64)

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            total = self.held_out.to(pl_module.device, torch.float32)
            torch.distributed.all_reduce(total)  # the same tokens on all tensor parallel ranks: a mean all the same
            if run.rank.first and not trainer.sanity_checking:
                run.log.add({"step": trainer.global_step, "eval_loss": float(total[0] / total[1])})
            self.meter.started = time.monotonic()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            finish_saves(trainer)
            save_final(trainer, run)

    return Watcher()


def save_final(trainer: Any, run: Run) -> None:
    """Save the weights that a training ends with, adapters merged into them."""
    if run.engine.lora is None:
        save(trainer, run, None)
        finish_saves(trainer)
        return
    model = trainer.strategy.megatron_parallel
    if run.engine.overlap_parameters:
        model.force_param_sync()  # what the last step changed is still where its optimizer's share is
    save_merged(model, run.checkpoints.final / "weights")
    run.checkpoints.completion(run.checkpoints.final, first=run.rank.first)()


def save(trainer: Any, run: Run, step: int | None) -> None:
    """Save a checkpoint after a step, or the weights alone after the last one (None)."""
    checkpoint = run.checkpoints.final if step is None else run.checkpoints.at(step)
    done = run.checkpoints.completion(checkpoint, first=run.rank.first)
    if run.engine.asynchronous_save:
        trainer.save_checkpoint(checkpoint, step is None, storage_options={"finalize_fn": done})
    else:
        trainer.save_checkpoint(checkpoint, step is None)  # which ends with a barrier
        done()


def finish_saves(trainer: Any) -> None:
    """Wait until all that is being saved is on the disk."""
    finish = getattr(trainer.strategy.checkpoint_io, "maybe_finalize_save_checkpoint", None)
    if finish is not None:
        finish(blocking=True)
