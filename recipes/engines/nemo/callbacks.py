"""What happens beside a training in NeMo: metrics, checkpoints, validation, and when it stops.

`training` puts `watcher(...)` into NeMo's trainer. After each step all processes agree, in one all-reduce, on whether
one of them was told to stop and whether the numbers are still finite.
"""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reasonforge.errors import StageError
from reasonforge.files import write_jsonl
from reasonforge.progress import Progress
from recipes import interruption
from recipes.engines.nemo.adapters import save_merged
from recipes.engines.nemo.checkpoints import Checkpoints
from recipes.engines.nemo.data import Batches
from recipes.engines.nemo.flops import peak_flops, step_flops
from recipes.engines.nemo.options import NeMoEngine
from recipes.engines.nemo.precision import is_fp8
from recipes.ranks import Rank

_NAMED_ROWS = 8


@dataclass
class Run:
    """One training: what it trains on, until when, and where its checkpoints and metrics go."""

    engine: NeMoEngine
    batches: Batches
    end: int
    """The step after which it ends."""
    checkpoints: Checkpoints
    rank: Rank
    log: "Log"
    progress: Progress | None
    """Shown by the first process only."""


@dataclass
class Log:
    """metrics.jsonl, a line every some steps, and what else shows them; the first process alone writes."""

    path: Path
    to: tuple[str, ...] = ()
    _writer: Any = None
    _wandb: Any = None

    def resume(self, step: int) -> None:
        """Go on after a step: what earlier attempts wrote of later ones is forgotten."""
        write_jsonl(self.path, [row for row in self.read() if row["step"] <= step])
        if "tensorboard" in self.to:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=step + 1)
        if "wandb" in self.to:
            import wandb

            self._wandb = wandb.init(dir=str(self.path.parent), id=self.path.parents[1].name, resume="allow")

    def read(self) -> list[dict[str, Any]]:
        """The lines so far, those of earlier attempts included; one that a kill cut off is none."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def add(self, row: dict[str, Any]) -> None:
        """Write a line."""
        row["time"] = round(time.time(), 3)
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")
        values = {key: value for key, value in row.items() if key not in ("step", "time")}
        if self._writer is not None:
            for key, value in values.items():
                self._writer.add_scalar(f"train/{key}", value, row["step"])
            self._writer.flush()
        if self._wandb is not None:
            self._wandb.log(values, step=row["step"])


@dataclass
class Meter:
    """What the steps since the last line of the metrics took and gave."""

    run: Run
    config: Any
    """The model's, for its floating-point operations."""
    losses: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def row(self, step: int, learning_rate: float, grad_norm: float) -> dict[str, Any]:
        """The line after a step, and begin anew. `loss` is the mean over the steps since the last line, tokens are
        those of the sequences without padding, `mfu` is against the GPU's dense peak in the precision that is used."""
        import torch

        batches, count, seconds = self.run.batches, len(self.losses), time.monotonic() - self.started
        lengths = [
            int(batches.rows.lengths[row]) for past in range(step - count, step) for row in batches.batch_rows(past)
        ]
        each = seconds * self.run.rank.size
        row: dict[str, Any] = {
            "step": step,
            "loss": sum(self.losses) / count,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "epoch": round(step * batches.size / batches.order.rows, 4),
            "step_time": round(seconds / count, 4),
            "tokens_per_second_per_gpu": round(sum(lengths) / each, 1),
        }
        flops = step_flops(self.config, lengths) / each
        row["tflops_per_gpu"] = round(flops / 1e12, 3)
        if torch.cuda.is_available():
            peak = peak_flops(torch.cuda.get_device_name(), is_fp8(self.run.engine.precision))
            row |= {"mfu": round(flops / peak, 4)} if peak else {}
            row["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
            row["reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 3)
        self.losses, self.started = [], time.monotonic()
        return row


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
            torch.distributed.all_reduce(
                total
            )  # the same tokens on all ranks of tensor parallelism: a mean all the same
            if run.rank.first and not trainer.sanity_checking:
                run.log.add({"step": trainer.global_step, "eval_loss": float(total[0] / total[1])})
            self.meter.started = time.monotonic()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            finish_saves(trainer)
            if run.engine.lora is None:
                save(trainer, run, None)
                finish_saves(trainer)
            else:
                save_merged(trainer.strategy.megatron_parallel, run.checkpoints.final / "weights")
                run.checkpoints.completion(run.checkpoints.final, first=run.rank.first)()

    return Watcher()


def agree(*flags: bool) -> list[bool]:
    """Each flag as true as it is in any process."""
    import torch

    tensor = torch.tensor([float(flag) for flag in flags], device="cuda")
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return [bool(value) for value in tensor.tolist()]


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


def broken_at(run: Run, batch: int, outputs: list[Any]) -> StageError:
    """The error of a step whose loss or gradient is no longer finite; it names the rows of the micro-batches whose loss
    is not, or of the whole batch where the gradient alone is to blame. All processes call it and say the same."""
    import torch
    from megatron.core import parallel_state

    copies, copy = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    micro, size = run.engine.micro_batch_size, run.batches.size
    mine = [
        batch * size + (number * copies + copy) * micro + place
        for number, output in enumerate(outputs)
        if not all(bool(torch.isfinite(value).all()) for value in output.values())
        for place in range(micro)
    ]
    gathered: list[Any] = [None] * run.rank.size
    torch.distributed.all_gather_object(gathered, mine)
    positions = sorted({position for positions in gathered for position in positions})
    what = "loss" if positions else "gradient"
    rows = [row for place in positions or range(batch * size, (batch + 1) * size) for row in run.batches.members(place)]
    names = run.batches.rows.names(rows[:_NAMED_ROWS])
    more = f" and {len(rows) - len(names)} more" if len(rows) > len(names) else ""
    last = run.checkpoints.last_whole()
    kept = f"the checkpoint of step {run.checkpoints.step(last)} is whole" if last else "there is no checkpoint yet"
    return StageError(
        f"step {batch + 1}: the {what} is not finite, with the rows {', '.join(names)}{more} of the tokens; {kept}; "
        "look at these rows, or lower learning_rate"
    )
