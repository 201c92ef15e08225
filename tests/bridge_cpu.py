"""The real Megatron-Bridge without a GPU, for tests only: Bridge thinks that it has one, and all happens on the CPU.

It is run by BRIDGE_PYTHON or the interpreter of `make bridge-env`, which has Bridge but none of our test packages:

    bridge_cpu.py -m MODULE ARGUMENTS...    run a module of ours, such as recipes.run_stage, in this Bridge
    bridge_cpu.py FILE ARGUMENTS...         run a script in it

Modules named in WITHOUT_CUDA_MORE are imported after the shim, so that a test can change more.
"""

import sys
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

from stand_ins import StandIns
from without_cuda import put_cpu_in_place_of_cuda, run_what_is_asked_for


def pretend() -> None:
    """Import Bridge, which asks for Transformer Engine and triton, and put the CPU in place of CUDA."""
    import torch

    torch.set_num_threads(1)
    # Compiling repays itself on nothing as small as this.
    torch.compile = lambda function=None, **_: function or (lambda decorated: decorated)
    # These first: what finds no Transformer Engine does without, and torch looks through its own functions.
    for module in ("torch._dynamo", "transformers.modeling_utils", "megatron.core.optimizer",
                   "megatron.core.models.gpt.gpt_layer_specs", "megatron.core.transformer.moe.moe_layer"):  # fmt: skip
        import_module(module)
    sys.meta_path.append(StandIns("transformer_engine", "transformer_engine_torch", "triton"))
    import_module("megatron.bridge.training.pretrain")
    put_cpu_in_place_of_cuda()
    let_bridge_start()
    let_the_engine_start()


def let_bridge_start() -> None:
    """gloo in place of NCCL, no compiler, and no question whether there is a GPU, neither here nor in the process that
    writes checkpoints in the background, which is forked from this one."""
    import torch
    from megatron.bridge.training import initialize, setup, state
    from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue

    plain = torch.distributed.init_process_group

    def init_process_group(backend: str, **more: Any) -> None:
        plain("gloo" if backend == "nccl" else backend, **more)

    torch.distributed.init_process_group = init_process_group
    initialize.compile_helpers = lambda: None  # for Megatron's own data sets
    state.AsyncCallsQueue = lambda **_: AsyncCallsQueue()
    setup.initialize_megatron = partial(initialize.initialize_megatron, allow_no_cuda=True)


def let_the_engine_start() -> None:
    """It refuses a Bridge without Transformer Engine, which here has stand-ins; and gloo may still be sending what
    Megatron-core would free."""
    from recipes.engines.megatron import compatibility
    from recipes.engines.megatron_bridge import configuration

    there = replace(compatibility.installed(), transformer_engine="2.10")
    compatibility.installed = lambda: there
    configure = configuration.training_config

    def configure_for_gloo(*args: Any, **kwargs: Any) -> Any:
        config = configure(*args, **kwargs)
        config.model.deallocate_pipeline_outputs = False
        return config

    configuration.training_config = configure_for_gloo


if __name__ == "__main__":
    pretend()
    run_what_is_asked_for()
