"""The CPU in the place of CUDA, for tests only: `nemo_cpu` and `bridge_cpu` let frameworks that want a GPU run so."""

import contextlib
import os
import runpy
import sys
from importlib import import_module
from typing import Any

from fused_adam import use_fused_adam


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
    use_fused_adam()


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


def run_what_is_asked_for() -> None:
    """The script, or with -m the module, that the arguments of this process name, as if it had been started itself.

    Modules named in WITHOUT_CUDA_MORE are imported before, so that a test can change more.
    """
    module = sys.argv[1] == "-m"
    del sys.argv[: 2 if module else 1]
    for name in filter(None, os.environ.get("WITHOUT_CUDA_MORE", "").split(",")):
        import_module(name)
    if module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
