"""The checkpoints of a training in Megatron-Bridge: each a directory of Bridge of its own, marked when it is whole.

`callbacks` saves with it. Bridge's own schedule of saves is off, for a checkpoint that a kill cut off would look like a
whole one to it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.engines.megatron.adapters import product
from recipes.engines.megatron.metrics import Run


@dataclass
class Saver:
    """Saves a training's checkpoints; all processes call it together."""

    run: Run
    _context: dict[str, Any] = field(default_factory=dict)
    """What Bridge keeps from one save to the next."""
    _pending: Path | None = None
    """What is being written in the background."""
    _last: int | None = None

    def save(self, training: Any, step: int) -> None:
        """Save everything after a step, once.

        Args:
            training: a CallbackContext of Bridge with model, optimizer and scheduler.
        """
        if self._last == step:
            return
        self.finish(training.state)
        checkpoint = self.run.checkpoints.at(step)
        self._last, self._pending = step, checkpoint
        _write(training, checkpoint, self._context)
        if not self.run.engine.asynchronous_save:
            self._complete()

    def look(self, state: Any) -> None:
        """Mark what was written in the background meanwhile."""
        from megatron.bridge.training.checkpointing import is_empty_async_queue

        if self._pending is not None and is_empty_async_queue(state):
            self._complete()

    def finish(self, state: Any, *, last: bool = False) -> None:
        """Wait until all is on the disk.

        Args:
            last: whether nothing will be saved in the background any more.
        """
        from megatron.bridge.training.checkpointing import maybe_finalize_async_save

        maybe_finalize_async_save(state, state.cfg.checkpoint, blocking=True, terminate=last)
        if self._pending is not None:
            self._complete()

    def save_final(self, training: Any) -> None:
        """Save the weights alone after the last step, adapters added to them."""
        self.finish(training.state, last=True)
        settings = training.state.cfg.checkpoint
        settings.async_save = settings.save_optim = settings.save_rng = False
        if self.run.engine.lora is not None:
            merge_adapters(training.model)
            training.state.cfg.peft = None
        self._pending = self.run.checkpoints.final
        _write(training, self.run.checkpoints.final, {})
        self._complete()

    def _complete(self) -> None:
        if self._pending is not None:
            self.run.checkpoints.completion(self._pending, first=self.run.rank.first)()
        self._pending = None


def merge_adapters(model: list[Any]) -> None:
    """Add every adapter to its matrix, and leave the matrix alone in its place.

    Bridge's own LoRAMerge takes the part of an adapter that one process has for the whole of it.
    """
    import torch
    from megatron.bridge.peft.lora import LoRALinear

    with torch.no_grad():
        for chunk in model:
            for parent in list(chunk.modules()):
                for name, child in list(parent.named_children()):
                    if isinstance(child, LoRALinear):
                        weight = child.to_wrap.weight
                        weight.add_(product(child.adapter).to(weight))
                        setattr(parent, name, child.to_wrap)


def _write(training: Any, checkpoint: Path, kept: dict[str, Any]) -> None:
    """What Bridge's `save_checkpoint_and_time` does, without its timers, which run in the midst of a step only."""
    from megatron.bridge.training.checkpointing import save_checkpoint
    from megatron.bridge.training.train import force_param_sync, should_disable_forward_pre_hook

    state = training.state
    settings = state.cfg
    if should_disable_forward_pre_hook(
        settings.ddp.use_megatron_fsdp, settings.optimizer.use_distributed_optimizer, settings.ddp.overlap_param_gather
    ):
        force_param_sync(training.model)
    settings.checkpoint.save = str(checkpoint)
    save_checkpoint(
        state,
        training.model,
        training.optimizer,
        training.scheduler,
        state.train_state.floating_point_operations_so_far,
        checkpointing_context=kept,
    )
