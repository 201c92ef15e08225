"""Megatron-Bridge's side of test_bridge_configuration.py, run by the interpreter that has it, without a GPU:

    bridge_configuration_side.py JOB.json ANSWER.json

For each of the job's `trainings` it builds the whole ConfigContainer, lets Bridge itself lay its precision, overlap and
rules over it as `pretrain` does, trains nothing, and tells its keys; `rates` are the learning rates of its schedule,
`recorded` the steps that its profiler records.
Transformer Engine and triton, which Bridge imports, are stand-ins.
"""

import json
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from stand_ins import StandIns

from reasonforge.errors import RequestError


def answer(training: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """A RequestError is told as `refused`."""
    from megatron.bridge.training.config import runtime_config_update

    from recipes.engines.megatron_bridge.configuration import flatten, training_config
    from recipes.engines.megatron_bridge.options import MegatronBridgeEngine

    engine = MegatronBridgeEngine.model_validate(training["engine"])
    os.environ["WORLD_SIZE"] = str(training["gpus"])
    try:
        config = training_config(
            engine,
            Path(training["model"]),
            gpus=training["gpus"],
            scratch=scratch,
            sequence_length=engine.sequence_length or 4096,
            seed=7,
            teacher=Path(training["teacher"]) if training.get("teacher") else None,
        )
    except RequestError as error:
        return {"refused": str(error)}
    runtime_config_update(config)
    teacher = getattr(config.model, "teacher", None)
    return {
        "keys": flatten(config),
        "fp8": fp8_settings(config.model),
        "rates": rates(config, 12),
        "recorded": recorded(config, engine.steps) if engine.profile is not None else [],
        "hooks": 0 if teacher is None else len(teacher._pre_wrap_hooks),
    }


def fp8_settings(provider: Any) -> dict[str, Any]:
    """Those of megatron-core's TransformerConfig that are about FP8."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    names = [field.name for field in fields(TransformerConfig) if "fp8" in field.name or "bf16" in field.name]
    return {name: getattr(provider, name) for name in names}


def rates(config: Any, steps: int) -> list[float]:
    """The learning rates of the first steps, by Bridge's own scheduler."""
    from megatron.bridge.training.optim import _get_scheduler

    class Optimizer:
        param_groups = [{"lr": 0.0, "wd_mult": 1.0, "weight_decay": 0.0}]  # noqa: RUF012

    optimizer = Optimizer()
    scheduler = _get_scheduler(config.optimizer, config.scheduler, optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        scheduler.step(config.train.global_batch_size)
    return found


def recorded(config: Any, steps: int) -> list[int]:
    """The steps that a profiler of Bridge records, in a loop like that of its training/train.py."""
    import torch
    from megatron.bridge.training import profiling

    settings, spans = config.profiling, []
    rank = settings.profile_ranks[-1]
    profiling.start_nsys_profiler = lambda _: spans.append("start")
    profiling.stop_nsys_profiler = lambda _: spans.append("stop")
    profiler = None
    if settings.use_pytorch_profiler:
        profiler = profiling.initialize_pytorch_profiler(settings, config.logger.tensorboard_dir)
        profiler.start()
    for step in range(steps):
        profiling.handle_profiling_step(settings, step, rank, profiler)
        with torch.profiler.record_function(f"step {step}"):
            spans.append(f"step {step}")
        profiling.handle_profiling_stop(settings, step + 1, rank, profiler)
    if profiler is None:
        inside = spans[spans.index("start") + 1 : spans.index("stop")]
    else:
        [trace] = Path(config.logger.tensorboard_dir).glob("*.json")
        events = json.loads(trace.read_text())["traceEvents"]
        inside = sorted({event["name"] for event in events if event.get("name", "").startswith("step ")})
    return sorted(int(name.removeprefix("step ")) for name in inside)


def main() -> None:
    import torch

    torch.compile = lambda function=None, **_: function or (lambda decorated: decorated)
    for module in ("torch._dynamo", "transformers.modeling_utils"):  # they look at what is replaced below
        __import__(module)
    sys.meta_path.append(StandIns("transformer_engine", "transformer_engine_torch", "triton"))
    job = json.loads(Path(sys.argv[1]).read_text())
    found = {name: answer(training, Path(job["scratch"]) / name) for name, training in job["trainings"].items()}
    Path(sys.argv[2]).write_text(json.dumps({"trainings": found}))


if __name__ == "__main__":
    main()
