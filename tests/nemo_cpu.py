"""The real NeMo 2 without a GPU, for tests only: NeMo thinks that it has one, and everything happens on the CPU.

It is run by NEMO_PYTHON or the interpreter of `make nemo-env`, which has nemo_toolkit but none of our test packages:

    nemo_cpu.py -m MODULE ARGUMENTS...    run a module of ours, such as recipes.run_stage, in this NeMo
    nemo_cpu.py FILE ARGUMENTS...         run a script in it

Modules named in WITHOUT_CUDA_MORE are imported after the shim, so that a test can change more.
"""

from dataclasses import replace
from importlib import import_module
from typing import Any

from without_cuda import put_cpu_in_place_of_cuda, run_what_is_asked_for


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
    let_the_engine_start()


def do_without_transformer_engine() -> None:
    """Configurations that ask for its kernels can be made, and build models that do without."""
    from megatron.core.models.common.embeddings import rope_utils
    from megatron.core.transformer.moe import moe_utils
    from nemo.collections.llm import GPTConfig

    configure = GPTConfig.configure_model

    def configure_without_kernels(config: Any, *args: Any, **kwargs: Any) -> Any:
        config.moe_grouped_gemm = config.moe_permute_fusion = False
        config.deallocate_pipeline_outputs = False  # gloo may still be sending them
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


def let_the_engine_start() -> None:
    """It refuses what wants Transformer Engine, which here has stand-ins."""
    from recipes.engines.megatron import compatibility

    there = replace(compatibility.installed(), transformer_engine="2.9")
    compatibility.installed = lambda: there


if __name__ == "__main__":
    pretend()
    run_what_is_asked_for()
