"""The `nemo` engine of `distill`: NeMo 2 with Megatron-core and Transformer Engine, one process a GPU.

`options` is what a recipe says, `configuration` turns it into NeMo's own recipe, `training` runs it; what it shares
with `megatron_bridge` is in `recipes.engines.megatron`.
"""
