"""What the TRL engines share: common options, progress, metrics as JSON lines, and checkpoints known to be whole."""

import json
import shutil
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from reasonforge.config import Operational, Strict
from reasonforge.errors import RequestError
from reasonforge.files import fsync_path, write_jsonl
from reasonforge.progress import Progress
from recipes import interruption

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"
_COMPLETE = "complete"
"""Written into a trainer's checkpoint when all of it is on the disk: a checkpoint without it was cut off by a kill."""


class TrainOptions(Strict):
    """Options that every TRL trainer has. The defaults of the optimiser are AdamW's usual ones."""

    steps: int = Field(gt=0)
    """Optimiser steps."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    min_learning_rate_ratio: float = Field(0.1, ge=0, le=1)
    """Learning rate at the last step, as a part of the peak; the way there is a cosine."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up from zero."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay of the first moment."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW's decay of the second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    gradient_checkpointing: Annotated[bool, Operational()] = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    save_every: Annotated[int, Operational(), Field(gt=0)] = 200
    """Steps between checkpoints; a killed stage loses at most these."""
    log_every: Annotated[int, Operational(), Field(gt=0)] = 10
    """Steps between two lines of metrics.jsonl."""
    log_to: Annotated[tuple[Literal["tensorboard", "wandb"], ...], Operational()] = Field((), strict=False)
    """Where metrics also go, beside metrics.jsonl. Weights & Biases reads its own environment variables."""


def training_arguments(options: TrainOptions, scratch: Path, seed: int) -> dict[str, Any]:
    """The arguments that `SFTConfig` and `GRPOConfig` have in common (transformers' `TrainingArguments`)."""
    import torch

    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(scratch / "trainer"),
        "max_steps": options.steps,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": options.min_learning_rate_ratio},
        "warmup_steps": options.warmup_steps,
        "adam_beta1": options.adam_beta1,
        "adam_beta2": options.adam_beta2,
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.max_grad_norm,
        "gradient_checkpointing": options.gradient_checkpointing,
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "save_strategy": "steps",
        "save_steps": options.save_every,
        "save_total_limit": 2,
        "logging_steps": options.log_every,
        "report_to": [name for name in options.log_to if name != "tensorboard"],
        "disable_tqdm": True,
        "seed": seed,
    }


def train(trainer: Any, options: TrainOptions, scratch: Path, progress: Progress) -> list[dict[str, Any]]:
    """Run a transformers trainer from its last whole checkpoint to the end; returns its metrics, a row a logged step.

    `scratch/metrics.jsonl` (and `scratch/tensorboard`) grow while it trains, so that a curve can be watched.
    """
    from transformers import PrinterCallback
    from transformers.integrations import TensorBoardCallback

    resume_from = last_whole_checkpoint(scratch / "trainer")
    if resume_from and _step(resume_from) >= options.steps:
        progress.resume(options.steps)
        _restore(trainer, resume_from)
        return _metrics(trainer)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_watcher(scratch / METRICS, progress))
    if "tensorboard" in options.log_to:
        from torch.utils.tensorboard import SummaryWriter

        trainer.add_callback(TensorBoardCallback(SummaryWriter(str(scratch / TENSORBOARD))))
    with interruption.deferred():
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    return _metrics(trainer)


def _restore(trainer: Any, checkpoint: Path) -> None:
    """Load a checkpoint of the last step: from there, transformers' own resume would take one step more."""
    from transformers import TrainerState

    trained = type(trainer.model).from_pretrained(checkpoint, dtype=trainer.model.dtype, local_files_only=True)
    trainer.model.load_state_dict(trained.state_dict())
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def _metrics(trainer: Any) -> list[dict[str, Any]]:
    return [_metrics_row(entry) for entry in trainer.state.log_history if "train_runtime" not in entry]


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was saved to its end; those cut off by a kill are deleted."""
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / _COMPLETE).exists():
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(whole, key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def load_student(directory: Path) -> tuple[Any, Any]:
    """A checkpoint's model in fp32 (training keeps fp32 weights) and its tokenizer, from local files only."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    if not tokenizer.chat_template:
        raise RequestError(str(directory), "the tokenizer has no chat template", "add a chat_template.jinja beside it")
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True), tokenizer


def save_student(
    model: Any, tokenizer: Any, source: Path, metrics: list[dict[str, Any]], scratch: Path, out: Path
) -> None:
    """Write a trained model in the dtype of the checkpoint it came from, with its tokenizer and its curves."""
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(source, local_files_only=True).dtype
    if dtype is not None:
        model = model.to(dtype)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_jsonl(out / METRICS, metrics)
    if (scratch / TENSORBOARD).exists():
        shutil.copytree(scratch / TENSORBOARD, out / TENSORBOARD)


def _metrics_row(entry: dict[str, Any]) -> dict[str, Any]:
    return {"step": entry["step"], **{name: value for name, value in entry.items() if name != "step"}}


def _watcher(metrics_file: Path, progress: Progress) -> Any:
    """A trainer callback: progress at each step, a metrics line at each log, a mark in each whole checkpoint."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            write_jsonl(metrics_file, (_metrics_row(entry) for entry in state.log_history))
            progress.resume(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress.set(state.global_step)
            if interruption.requested():
                control.should_save = control.should_training_stop = True
            if state.global_step >= state.max_steps:
                control.should_log = True  # whatever log_every is

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "train_runtime" in logs:
                return
            logs["time"] = round(time.time(), 3)
            state.log_history[-1]["time"] = logs["time"]
            with open(metrics_file, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(_metrics_row(state.log_history[-1])) + "\n")
            note = [f"{name} {logs[name]:.3f}" for name in ("loss", "reward") if name in logs]
            progress.set(state.global_step, ", ".join(note))

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            for path in checkpoint.rglob("*"):
                fsync_path(path)
            (checkpoint / _COMPLETE).touch()

    return Watcher()
