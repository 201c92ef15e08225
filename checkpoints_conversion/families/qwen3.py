"""Qwen3: no biases, a norm over each head's queries and keys, and a head size of its own."""

from checkpoints_conversion.families.blocks import (
    ATTENTION,
    ATTENTION_STATES,
    DENSE_MLP,
    DENSE_STATES,
    OUTSIDE,
    QK_NORM,
    QK_NORM_STATES,
)
from checkpoints_conversion.families.table import Family

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    outside=OUTSIDE,
    layer=(*ATTENTION, *QK_NORM, *DENSE_MLP),
    extra_states=(*ATTENTION_STATES, *QK_NORM_STATES, *DENSE_STATES),
    qk_norm=True,
)
