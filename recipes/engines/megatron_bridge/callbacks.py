"""What happens beside a training in Megatron-Bridge: metrics, checkpoints, validation, and when it stops.

`training` gives `ForwardStep` and `watcher(...)` to Bridge's loop. After each step all processes agree on whether one
of them was told to stop and whether the numbers are still finite.
"""

import math
import time
from dataclasses import dataclass, field
from typing import Any

from recipes import interruption
from recipes.engines.megatron.health import agree, broken_at
from recipes.engines.megatron.metrics import Meter, Run
from recipes.engines.megatron_bridge.checkpointing import Saver


@dataclass
class ForwardStep:
    """Bridge's own forward step, and the loss of each micro-batch that it computed since the step began."""

    step: Any
    losses: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, state: Any, data_iterator: Any, model: Any, return_schedule_plan: bool = False) -> Any:
        """What Bridge's loop calls; it goes by the name of the first parameter."""
        import torch

        output, loss_of = self.step(state, data_iterator, model, return_schedule_plan)

        def remembered(output_tensor: Any) -> Any:
            found = loss_of(output_tensor)
            if torch.is_grad_enabled():
                self.losses.append({"loss": found[0].detach()})
            return found

        return output, remembered


def watcher(run: Run, forward: ForwardStep) -> Any:
    """The callback, for the hooks of Bridge's loop."""
    from megatron.bridge.training.callbacks import Callback

    class Watcher(Callback):  # type: ignore[misc]
        """See watcher. Bridge counts a step after `on_train_step_end`: what needs the count waits for the next hook."""

        state: Any = None

        def on_train_start(self, context: Any) -> None:
            self.state = context.state
            step = context.state.train_state.step
            if run.rank.first:
                run.log.resume(step)
            if run.progress:
                run.progress.resume(step)
            self.meter, self.saver = Meter(run, context.state.cfg.model), Saver(run)
            self.stop = False
            self.trained: Any = None

        def on_train_step_start(self, context: Any) -> None:
            self.saver.look(context.state)
            self._save(context.state)
            if self.stop:
                self.saver.finish(context.state, last=True)
                raise interruption.Interrupted
            forward.losses.clear()
            self.rate = float(context.optimizer.param_groups[0]["lr"])

        def on_train_step_end(self, context: Any) -> None:
            self.trained = context
            step = context.state.train_state.step + 1
            loss, norm = known_to_all(_loss(context.loss_dict)), float(context.grad_norm or 0.0)
            self.stop, broken = agree(interruption.requested(), not (math.isfinite(loss) and math.isfinite(norm)))
            if broken:
                self.saver.finish(context.state, last=True)
                raise broken_at(run, step - 1, forward.losses)
            self.meter.losses.append(loss)
            if step == 1 or step % run.engine.log_every == 0 or step >= run.end:
                row = self.meter.row(step, self.rate, norm)
                if run.rank.first:
                    run.log.add(row)
            if run.progress:
                run.progress.set(step, f"loss {loss:.3f}")

        def on_eval_start(self, context: Any) -> None:
            self._save(context.state)  # before a long validation, not after it

        def on_eval_end(self, context: Any) -> None:
            loss = known_to_all(_loss(context.total_loss_dict, "lm loss"))
            context.state.train_state.consumed_valid_samples = 0  # each validation is on the same rows
            if run.rank.first:
                run.log.add({"step": context.state.train_state.step, "eval_loss": loss})
            self.meter.started = time.monotonic()

        def on_train_end(self, context: Any) -> None:
            self.saver.save_final(context)
            context.state.train_state.do_valid = False  # Bridge would validate once more

        def close(self) -> None:
            """End what still writes in the background: after an error it would keep the process from ending."""
            if self.state is not None and self.state.async_calls_queue is not None:
                self.state.async_calls_queue.close(abort=True)

        def _save(self, state: Any) -> None:
            """Save the step that was trained last, where it is due."""
            step = state.train_state.step
            if self.trained is not None and step < run.end and (self.stop or step % run.engine.save_every == 0):
                self.saver.save(self.trained, step)

    return Watcher()


def known_to_all(loss: float) -> float:
    """A loss of the last pipeline stage, in every process: the last of them is in that stage."""
    import torch

    tensor = torch.tensor([loss], device="cuda")
    torch.distributed.broadcast(tensor, src=torch.distributed.get_world_size() - 1)
    return float(tensor.item())


def _loss(losses: dict[str, Any] | None, *keys: str) -> float:
    """What was minimised, or the first of some keys; 0 in a stage that computes no loss."""
    found = losses or {}
    return next((float(found[key]) for key in keys or ("total loss", "lm loss") if key in found), 0.0)
