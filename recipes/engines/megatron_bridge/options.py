"""The options of the `megatron_bridge` engine: those of every engine on Megatron-core, and what Bridge 0.3 refuses or
would do otherwise beside them.
"""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from recipes.engines.megatron.options import MegatronEngine, TorchProfile
from recipes.preflight.layout import Core


class MegatronBridgeEngine(MegatronEngine):
    """Train with Megatron-Bridge on Megatron-core: on our traces, or on a teacher's logits (`distill`)."""

    needs: ClassVar[tuple[str, ...]] = ("megatron.bridge", "megatron.core", "modelopt", "torch", "pyarrow")
    environment: ClassVar[str] = "bridge"
    directory: ClassVar[Literal["nemo", "bridge"]] = "bridge"
    core: ClassVar[Core] = "0.16"

    type: Literal["megatron_bridge"] = "megatron_bridge"

    @model_validator(mode="after")
    def _check_bridge(self) -> Self:
        for problem in (_stages_of_a_teacher(self), _last_trace(self)):
            if problem is not None:
                raise ValueError(problem)
        return self


def _stages_of_a_teacher(engine: MegatronBridgeEngine) -> str | None:
    """Between stages Bridge sends the student's and the teacher's activations at the model's own length, whatever the
    batch's (`get_tensor_shapes_adjust_fn_for_distillation` in training/train.py)."""
    stages = engine.parallelism.pipeline
    if engine.distillation is None or stages == 1 or engine.sequence_length is not None:
        return None
    return (
        f"distillation is given, and parallelism.pipeline = {stages}, but sequence_length is null, and between stages "
        "Megatron-Bridge sends both models' activations at one length; give sequence_length, or set pipeline: 1"
    )


def _last_trace(engine: MegatronBridgeEngine) -> str | None:
    """PyTorch's profiler writes when it is told of the step after the last; Bridge never stops it at the run's end."""
    profile = engine.profile
    if not isinstance(profile, TorchProfile) or profile.last_step < engine.steps - 1:
        return None
    return (
        f"profile.last_step = {profile.last_step} is the last of {engine.steps} steps, but Megatron-Bridge writes the "
        f"trace at the step after it; take {engine.steps - 2} or less, or profile.type nsys"
    )
