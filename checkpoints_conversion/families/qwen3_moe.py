"""Qwen3-MoE: Qwen3 with experts in every layer."""

from checkpoints_conversion.families.blocks import (
    ATTENTION,
    ATTENTION_STATES,
    EXPERT,
    EXPERT_STATES,
    LOCAL_MOE_NORM_KEY,
    MOE,
    MOE_NORM_KEY,
    OUTSIDE,
    QK_NORM,
    QK_NORM_STATES,
)
from checkpoints_conversion.families.table import Family

QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    outside=OUTSIDE,
    layer=(*ATTENTION, *QK_NORM, *MOE),
    expert=EXPERT,
    extra_states=(*ATTENTION_STATES, *QK_NORM_STATES, "pre_mlp_layernorm"),
    expert_extra_states=EXPERT_STATES,
    qk_norm=True,
    local_keys=((MOE_NORM_KEY, LOCAL_MOE_NORM_KEY),),
)
