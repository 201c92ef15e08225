"""Packed sequences by megatron-core's own attention, which refuses `packed_seq_params`, with a block-diagonal causal
mask made of them; for tests only. Importing it puts that attention in the place of the plain one.
"""

from typing import Any

import torch
from megatron.core.transformer.dot_product_attention import DotProductAttention

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
