"""How a model is laid over GPUs, and the batch that it trains on: the two configurations that every preflight check
reads. Engines put them into their own configurations; `layout` and `memory` judge them."""

from typing import Annotated, Literal

from pydantic import Field

from reasonforge.config import Strict

Precision = Literal["bf16", "fp16", "fp32", "fp8-delayed", "fp8-current", "fp8-blockwise", "mxfp8"]
"""What the matrix products are computed in. The FP8 ones are Transformer Engine's recipes over bf16 weights:
DelayedScaling, Float8CurrentScaling, Float8BlockScaling, MXFP8BlockScaling."""

Size = Annotated[int, Field(ge=1)]


def is_fp8(precision: Precision) -> bool:
    """Whether Transformer Engine computes the linear layers in 8 bits."""
    return "fp8" in precision


class Parallelism(Strict):
    """Megatron's five ways of sharing a model out. What is left of the GPUs is data parallelism."""

    tensor: Size = 1
    """GPUs that share each matrix (TP; `tensor_model_parallel_size`). Shoeybi et al. 2019, arXiv 1909.08053."""

    pipeline: Size = 1
    """Stages that share the layers (PP; `pipeline_model_parallel_size`). Narayanan et al. 2021, arXiv 2104.04473."""

    virtual_pipeline: Size | None = None
    """Chunks of layers that each stage holds in the interleaved schedule (VPP;
    `virtual_pipeline_model_parallel_size`). None: the plain 1F1B schedule. arXiv 2104.04473, section 2.2."""

    context: Size = 1
    """GPUs that share each sequence (CP; `context_parallel_size`). Liu et al. 2023, arXiv 2310.01889."""

    expert: Size = 1
    """GPUs that share the experts of each layer (EP; `expert_model_parallel_size`)."""

    expert_tensor: Size | None = None
    """GPUs that share each expert's matrices (ETP; `expert_tensor_parallel_size`). None: as many as `tensor`."""

    sequence_parallel: bool = False
    """Whether what lies between the matrices is shared along the sequence among the `tensor` GPUs (SP).
    Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2."""

    @property
    def expert_shards(self) -> int:
        """GPUs that share each expert's matrices."""
        return self.tensor if self.expert_tensor is None else self.expert_tensor

    @property
    def model_gpus(self) -> int:
        """GPUs of one copy of the model."""
        return self.tensor * self.pipeline * self.context

    def data(self, gpus: int) -> int:
        """Copies of the model on so many GPUs (DP), rounded down; at least 1."""
        return max(gpus // self.model_gpus, 1)

    def expert_data(self, gpus: int) -> int:
        """Copies of each expert on so many GPUs, rounded down; at least 1."""
        return max(gpus // (self.expert_shards * self.expert * self.pipeline), 1)


class Batch(Strict):
    """The sequences of a training step."""

    sequence_length: Size
    """Tokens of one sequence, padding included, on all its GPUs together (`seq_length`)."""

    micro: Size = 1
    """Sequences that pass through one copy of the model at a time (`micro_batch_size`)."""

    global_: Size
    """Sequences of one optimizer step, over all copies (`global_batch_size`)."""

    def rounds(self, copies: int) -> int:
        """Micro-batches that each of so many copies of the model works off in a step, rounded down; at least 1."""
        return max(self.global_ // (self.micro * copies), 1)
