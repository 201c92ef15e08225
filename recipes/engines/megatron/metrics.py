"""One training as those who watch it see it, and what they write of it: the lines of metrics.jsonl.

The engines' callbacks make a `Meter`, and add its rows to the `Log`.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reasonforge.files import write_jsonl
from reasonforge.progress import Progress
from recipes.engines.megatron.batches import Batches
from recipes.engines.megatron.checkpoints import Checkpoints
from recipes.engines.megatron.flops import peak_flops, step_flops
from recipes.engines.megatron.options import MegatronEngine
from recipes.engines.megatron.precision import is_fp8
from recipes.ranks import Rank


@dataclass
class Run:
    """One training: what it trains on, until when, and where its checkpoints and metrics go."""

    engine: MegatronEngine
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

    def close(self) -> None:
        """Nothing more will be added: let TensorBoard and W&B finish their files."""
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()

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
