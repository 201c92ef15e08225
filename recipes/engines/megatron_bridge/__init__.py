"""The `megatron_bridge` engine of `distill`: Megatron-Bridge, NeMo 2's successor, one process a GPU.

`options` is what a recipe says, `configuration` turns it into Bridge's own configuration, `training` runs it.
"""
