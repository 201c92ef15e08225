"""Floating-point operations of a training step, and what a GPU can do in a second: model FLOPs utilisation (MFU).

Our own formula, for NeMo's callback knows released models by name only, and Bridge counts padding. It is that of
Narayanan et al. 2021 (arXiv 2104.04473, appendix) with grouped queries and a gated MLP, each matrix product counted 2
for a multiplication and an addition, the backward pass twice the forward pass, a causal attention half, and no
recomputation.
"""

from collections.abc import Iterable
from typing import Any

_PEAK_TFLOPS = {"H200": 989.4, "H100 PCIe": 756.0, "H100": 989.4, "GH200": 989.4, "H800": 989.4, "B200": 2250.0}
_PEAK_TFLOPS |= {"GB200": 2500.0, "A100": 312.0, "A800": 312.0, "L40S": 362.0}
"""Dense bf16 TFLOP/s by a part of the device's name, from NVIDIA's data sheets."""


def step_flops(config: Any, lengths: Iterable[int]) -> float:
    """Floating-point operations of a training step on sequences of some lengths, padding not counted.

    Args:
        config: megatron-core's TransformerConfig as NeMo (GPTConfig) or Bridge (GPTModelProvider) has it, of a dense
            model.
    """
    hidden, layers = config.hidden_size, config.num_layers
    width = config.kv_channels or hidden // config.num_attention_heads
    queries, keys = config.num_attention_heads * width, (config.num_query_groups or config.num_attention_heads) * width
    gate = 3 if config.gated_linear_unit else 2
    matrices = layers * hidden * (2 * queries + 2 * keys + gate * config.ffn_hidden_size) + hidden * config.vocab_size
    tokens = squares = 0
    for length in lengths:
        tokens, squares = tokens + length, squares + length * length
    return float(3 * (2 * matrices * tokens + 2 * layers * queries * squares))


def peak_flops(device: str, fp8: bool) -> float | None:
    """Dense FLOP/s of a GPU in bf16, or in FP8, which is twice as much; None for one that is not known."""
    for name, tflops in _PEAK_TFLOPS.items():
        if name in device:
            return tflops * 1e12 * (2 if fp8 else 1)
    return None
