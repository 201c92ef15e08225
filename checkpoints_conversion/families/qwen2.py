"""Qwen2 and Qwen2.5: biases on query, key and value."""

from checkpoints_conversion.families.blocks import (
    ATTENTION,
    ATTENTION_STATES,
    DENSE_MLP,
    DENSE_STATES,
    OUTSIDE,
    QKV_BIAS,
)
from checkpoints_conversion.families.table import Family

QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    outside=OUTSIDE,
    layer=(*ATTENTION, *QKV_BIAS, *DENSE_MLP),
    extra_states=(*ATTENTION_STATES, *DENSE_STATES),
    qkv_bias=True,
)
