"""What vLLM takes of each GPU's memory, and how many tokens its key-value cache then holds. The stages that generate
and evaluate are planned with it."""

from dataclasses import dataclass
from typing import Literal

from checkpoints_conversion.spec import ModelSpec
from recipes.preflight.memory import CONTEXT
from recipes.preflight.shape import attention_matrices, embedding, expert_matrices, layer_rest, mlp_matrices
from recipes.preflight.table import MemoryTable, Row

BLOCK = 16
"""Tokens of a block of vLLM's cache (`block_size`). Kwon et al. 2023, arXiv 2309.06180."""


@dataclass(frozen=True)
class Serving:
    """How vLLM's memory is shared out on each GPU."""

    table: MemoryTable
    """Its capacity is vLLM's share of the GPU; the cache takes all that the rest leaves."""
    cache_per_token: int
    """Bytes of the key-value cache on one GPU for each token."""
    tokens: int
    """Tokens that the cache holds, in whole blocks; of all sequences together."""
    longest: int
    """Tokens of the longest sequence that fits, and that the model has positions for."""


def serving_memory(
    model: ModelSpec,
    gpu_memory: int,
    *,
    tensor: int = 1,
    utilization: float = 0.9,
    weight_bytes: Literal[1, 2, 4] = 2,
    cache_bytes: Literal[1, 2, 4] = 2,
    batched_tokens: int = 8192,
    sequences: int = 256,
) -> Serving:
    """Weights, activations and cache of a vLLM server.

    Args:
        model: the model's shape.
        gpu_memory: bytes of a GPU's memory.
        tensor: GPUs of one server (`tensor_parallel_size`).
        utilization: share of the GPU that vLLM takes (`gpu_memory_utilization`).
        weight_bytes: bytes of a weight's element.
        cache_bytes: bytes of an element of the cache (`kv_cache_dtype`).
        batched_tokens: tokens of one forward pass (`max_num_batched_tokens`).
        sequences: sequences that are sampled at a time (`max_num_seqs`).
    """
    per_token = cache_per_token(model, tensor, cache_bytes)
    weights = _weights(model, tensor) * weight_bytes
    inner = (model.expert_ffn * model.experts_per_token) if model.experts else model.ffn
    widest = max(3 * inner / tensor, (model.query_rows + 2 * model.key_rows) / tensor) + 4 * model.hidden
    # The sampler holds the logits in bf16, in fp32, and sorted with their indices for top-p.
    activations = 2 * batched_tokens * widest + 22 * sequences * model.vocabulary
    share = int(utilization * gpu_memory)
    left = max(share - round(weights) - round(activations) - CONTEXT, 0)
    tokens = left // (BLOCK * per_token) * BLOCK
    rows = (
        Row("weights", round(weights)),
        Row("activations and sampler", round(activations)),
        Row("CUDA and NCCL (allowance)", CONTEXT, fixed=True),
        Row("key-value cache", tokens * per_token),
    )
    table = MemoryTable(rows, share, f"{utilization:.0%} of every GPU")
    return Serving(table, per_token, tokens, min(tokens, model.positions))


def cache_per_token(model: ModelSpec, tensor: int = 1, cache_bytes: int = 2) -> int:
    """Bytes of the key-value cache of one GPU for each token: 2 · layers · KV heads · head_dim · bytes.

    The KV heads are shared out over TP; where there are fewer, each GPU holds one.
    """
    heads = max(model.groups // tensor, 1)
    return 2 * model.layers * heads * model.head_dim * cache_bytes


def _weights(model: ModelSpec, tensor: int) -> float:
    """Elements of the weights on one GPU; KV projections are repeated where there are fewer KV heads than GPUs."""
    repeated = 2 * model.hidden * (max(model.key_rows / tensor, model.head_dim) - model.key_rows / tensor)
    matrices = attention_matrices(model) + mlp_matrices(model) + expert_matrices(model)
    tables = embedding(model, model.padded_vocabulary(64)) * (1 if model.tied else 2)
    return model.layers * (matrices / tensor + repeated + layer_rest(model)) + tables / tensor + model.hidden
