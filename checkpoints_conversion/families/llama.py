"""Llama 2, 3, 3.1 and 3.2: no biases; from 3.1 on with rope scaling, which is in the configuration, not the weights."""

from checkpoints_conversion.families.blocks import ATTENTION, ATTENTION_STATES, DENSE_MLP, DENSE_STATES, OUTSIDE
from checkpoints_conversion.families.table import Family

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    outside=OUTSIDE,
    layer=(*ATTENTION, *DENSE_MLP),
    extra_states=(*ATTENTION_STATES, *DENSE_STATES),
)
