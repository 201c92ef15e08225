"""After a training of adapters: their product is added to the weights, and the model is saved as if all of it had been
trained. `callbacks` calls it after the last step.

NeMo's own LoRAMerge knows one process only, and reads model and adapters from the disk again.
"""

from pathlib import Path
from typing import Any

from recipes.engines.megatron.adapters import product


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
