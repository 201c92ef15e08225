"""After a training of adapters: their product is added to the weights, and the model is saved as if all of it had been
trained. `callbacks` calls it after the last step.

NeMo's own LoRAMerge knows one process only, and reads model and adapters from the disk again.
"""

from pathlib import Path
from typing import Any


def save_merged(model: Any, weights: Path) -> None:
    """Add every adapter to its matrix, and write the sharded weights; all processes call it together.

    Args:
        model: NeMo's MegatronParallel with LoRA; its weights are changed.
        weights: the directory of a torch_dist checkpoint, which is made.
    """
    import torch
    from megatron.core import dist_checkpointing
    from nemo.collections.llm.peft.lora import LoRALinear

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LoRALinear):
                weight = module.to_wrap.weight
                weight.add_(product(module.adapter).to(weight))
    weights.mkdir(parents=True, exist_ok=True)
    torch.distributed.barrier()
    tensors = {key: value for key, value in model.sharded_state_dict().items() if ".adapter." not in key}
    dist_checkpointing.save(tensors, str(weights))


def product(adapter: Any) -> Any:
    """This process's part of what an adapter adds to its matrix: alpha / rank × out × in.

    Both of the adapter's matrices are shared along their outer dimension like the matrix beside them; the inner one, of
    the rank, is gathered (`ParallelLinearAdapter` of nemo_toolkit 2.7.3).
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
