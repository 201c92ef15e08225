"""What wants Transformer Engine in Megatron-Bridge, without it, for tests only: packed sequences, adapters beside
megatron-core's own layers, and configurations that ask for kernels. `bridge_cpu.py` imports it where it is told to.
"""

from typing import Any

import packed_attention  # noqa: F401 - it works by being imported
from megatron.bridge.models import gpt_provider
from megatron.bridge.peft import utils

_provide = gpt_provider.GPTModelProvider.provide


def provide(self: Any, *args: Any, **kwargs: Any) -> Any:
    for kernel in ("apply_rope_fusion", "gradient_accumulation_fusion", "masked_softmax_fusion", "persist_layer_norm"):
        setattr(self, kernel, False)
    return _provide(self, *args, **kwargs)


gpt_provider.GPTModelProvider.provide = provide
gpt_provider.transformer_engine_layer_spec = gpt_provider.local_layer_spec  # the engine refuses both with its name
utils.HAVE_TE = False
