"""The real NeMo 2 without a GPU, for tests only: NeMo thinks that it has one, and everything happens on the CPU.

It is run by NEMO_PYTHON or the interpreter of `make nemo-env`, which has nemo_toolkit but none of our test packages:

    nemo_cpu.py -m MODULE ARGUMENTS...    run a module of ours, such as recipes.run_stage, in this NeMo
    nemo_cpu.py FILE ARGUMENTS...         run a script in it

Modules named in NEMO_CPU_MORE are imported after the shim, so that a test can change more.
"""

import contextlib
import os
import runpy
import sys
from importlib import import_module
from typing import Any


def pretend() -> None:
    """Import NeMo, and put the CPU in place of CUDA."""
    import numpy
    import torch

    # Compiling repays itself on nothing as small as this.
    torch.compile = lambda function=None, **_: function or (lambda decorated: decorated)
    import_module("nemo.collections.llm")  # before the shim: torch looks through its own functions meanwhile
    torch.set_num_threads(1)
    numpy.product = numpy.prod  # megatron-core 0.15.3, where several processes save, wants a name of NumPy 1
    put_cpu_in_place_of_cuda()
    do_without_transformer_engine()


def put_cpu_in_place_of_cuda() -> None:
    import torch
    from megatron.core.tensor_parallel import random

    class Stream(contextlib.nullcontext):
        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: self

    def nothing(*_: object, **__: object) -> None:
        pass

    def itself(it: Any, *_: object, **__: object) -> Any:
        return it

    def number(answer: int) -> Any:
        return lambda *_, **__: answer

    def get_state(*_: object, **__: object) -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(state: torch.Tensor, *_: object, **__: object) -> None:
        torch.set_rng_state(state)

    cuda = torch.cuda
    cuda.current_device, cuda.device_count, cuda.is_initialized = number(0), number(1), number(True)
    cuda.max_memory_reserved = cuda.max_memory_allocated = cuda.memory_allocated = number(0)
    cuda.synchronize = cuda.empty_cache = cuda.set_device = cuda.manual_seed_all = nothing
    cuda.Stream = cuda.Event = cuda.stream = cuda.current_stream = cuda.default_stream = Stream
    cuda.manual_seed, cuda.LongTensor = torch.manual_seed, torch.LongTensor
    cuda.get_rng_state = random._get_cuda_rng_state = get_state
    cuda.set_rng_state = random._set_cuda_rng_state = set_state
    torch.Tensor.cuda = torch.nn.Module.cuda = itself
    rewrite_devices()


def rewrite_devices() -> None:
    """Whoever asks torch for "cuda" gets the CPU, and tensors that say that they are on CUDA."""
    import torch
    from torch.overrides import TorchFunctionMode

    def cpu(device: Any) -> Any:
        cuda = isinstance(device, int) or str(device).startswith("cuda")
        return "cpu" if cuda and isinstance(device, int | str | torch.device) else device

    class OnCpu(TorchFunctionMode):
        """Rewrites devices in the arguments of torch's functions."""

        def __torch_function__(self, function, types, args=(), kwargs=None):
            kwargs = {key: value for key, value in (kwargs or {}).items() if key != "pin_memory"}
            if "device" in kwargs:
                kwargs["device"] = cpu(kwargs["device"])
            if function is torch.Tensor.to:
                args = (args[0], *map(cpu, args[1:]))
            return function(*args, **kwargs)

    plain_type = torch.Tensor.type

    def type_of(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found = plain_type(tensor, *args, **kwargs)
        return found.replace("torch.", "torch.cuda.") if isinstance(found, str) and "cuda" not in found else found

    torch.Tensor.type = type_of
    OnCpu().__enter__()


def do_without_transformer_engine() -> None:
    """Configurations that ask for its kernels can be made, and build models that do without."""
    from megatron.core.models.common.embeddings import rope_utils
    from megatron.core.transformer.moe import moe_utils
    from nemo.collections.llm import GPTConfig

    configure = GPTConfig.configure_model

    def configure_without_kernels(config: Any, *args: Any, **kwargs: Any) -> Any:
        config.moe_grouped_gemm = config.moe_permute_fusion = False
        for kernel in ("apply_rope_fusion", "masked_softmax_fusion", "persist_layer_norm"):
            setattr(config, kernel, False)
        return configure(config, *args, **kwargs)

    def absent(*_: object, **__: object) -> None:
        raise RuntimeError("a kernel of Transformer Engine")

    GPTConfig.configure_model = configure_without_kernels
    rope_utils.fused_apply_rotary_pos_emb = moe_utils.fused_permute = moe_utils.fused_permute_with_probs = absent
    moe_utils.fused_sort_chunks_by_index = moe_utils.fused_sort_chunks_by_index_with_probs = absent
    moe_utils.fused_unpermute = absent
    moe_utils.te_general_gemm = None  # megatron-core 0.15.3 forgets it where Transformer Engine is absent


def main() -> None:
    module = sys.argv[1] == "-m"
    del sys.argv[: 2 if module else 1]
    pretend()
    for name in filter(None, os.environ.get("NEMO_CPU_MORE", "").split(",")):
        import_module(name)
    if module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
