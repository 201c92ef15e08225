"""What wants Transformer Engine, without it, for tests only: packed sequences by megatron-core's own attention, which
refuses `packed_seq_params`, with a block-diagonal causal mask made of them; and adapters beside megatron-core's own
layers. `nemo_cpu.py` imports it where it is told to.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from megatron.core.transformer.dot_product_attention import DotProductAttention
from nemo.collections.llm.gpt.model import base
from nemo.collections.llm.peft import lora, utils
from nemo.lightning.pytorch.callbacks.megatron_comm_overlap import MegatronCommOverlapCallback

from recipes.engines.nemo import compatibility

_core = DotProductAttention.forward


def forward(self: Any, query: Any, key: Any, value: Any, attention_mask: Any, *args: Any, **kwargs: Any) -> Any:
    packed = kwargs.pop("packed_seq_params", None)
    if packed is None:
        return _core(self, query, key, value, attention_mask, *args, **kwargs)
    length = query.shape[0]
    starts = packed.cu_seqlens_q.long()
    block = torch.searchsorted(starts, torch.arange(length), right=True)
    seen = (block[:, None] == block[None, :]).tril()
    # Packed tensors come as [tokens, heads, width]; the plain attention wants [tokens, 1, heads, width].
    packed_shape = query.dim() == 3
    if packed_shape:
        query, key, value = (tensor.unsqueeze(1) for tensor in (query, key, value))
    found = _core(self, query, key, value, ~seen[None, None], *args, **kwargs)
    return found.squeeze(1) if packed_shape else found


DotProductAttention.forward = forward
base.transformer_engine_layer_spec = base.local_layer_spec  # the engine refuses both with its name for these layers
MegatronCommOverlapCallback.setup = lambda *_, **__: None  # it asks the GPU what it is
base.HAVE_TE = True  # so that a batch may do without a mask, which the plain attention makes itself
utils.HAVE_TE = False
lora.te = SimpleNamespace(Linear=type("Linear", (), {}))  # it asks whether a layer is one of these
_there = compatibility.installed()
compatibility.installed = lambda: replace(_there, transformer_engine="2.9")
