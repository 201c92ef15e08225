"""What an adapter adds to the matrix beside it, under tensor parallelism too; the engines add it at the end."""

from typing import Any


def product(adapter: Any) -> Any:
    """This process's part of what an adapter adds to its matrix: alpha / rank × out × in.

    Both of the adapter's matrices are shared along their outer dimension like the matrix beside them; the inner one, of
    the rank, is gathered (`ParallelLinearAdapter` of nemo_toolkit 2.7.3
    and of megatron-bridge 0.3.1).
    """
    scale, inner, outer = adapter.alpha / adapter.dim, adapter.linear_in.weight, adapter.linear_out.weight
    if adapter.input_is_parallel:
        return scale * _gathered(outer) @ inner
    return scale * outer @ _gathered(inner)


def _gathered(weight: Any) -> Any:
    """The rows of a matrix from all processes of tensor parallelism."""
    import torch
    from megatron.core import parallel_state

    group = parallel_state.get_tensor_model_parallel_group()
    parts = [torch.empty_like(weight) for _ in range(group.size())]
    torch.distributed.all_gather(parts, weight.contiguous(), group=group)
    return torch.cat(parts)
