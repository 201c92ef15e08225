"""What the engines on Megatron-core share, `nemo` and `megatron_bridge`: options, batches, checkpoints,
metrics, and which versions fit.
"""
