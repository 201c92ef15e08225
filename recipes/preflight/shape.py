"""How many parameters the parts of a decoder have: what `memory` and `layout` count with."""

from dataclasses import dataclass

from checkpoints_conversion.families import FAMILIES
from checkpoints_conversion.spec import ModelSpec
from recipes.preflight.parallelism import Parallelism


@dataclass(frozen=True)
class Held:
    """Parameters that one GPU holds. The three kinds are sharded over different groups."""

    linear: float
    """Of the layers' matrices outside the experts: what FP8 quantizes."""
    other: float
    """Of embedding, output layer, norms, biases and router."""
    experts: float
    """Of the experts' matrices."""

    @property
    def total(self) -> float:
        """All of them."""
        return self.linear + self.other + self.experts


def parameters(model: ModelSpec) -> int:
    """The parameters of a whole model, without vocabulary padding; tied weights count once."""
    layer = attention_matrices(model) + layer_rest(model) + mlp_matrices(model) + expert_matrices(model)
    return model.layers * layer + embedding(model, model.vocabulary) * (1 if model.tied else 2) + model.hidden


def attention_matrices(model: ModelSpec) -> int:
    """Elements of a layer's query, key, value and output projections."""
    return model.hidden * (2 * model.query_rows + 2 * model.key_rows)


def mlp_matrices(model: ModelSpec) -> int:
    """Elements of a dense layer's gate, up and down projections."""
    return 0 if model.experts else 3 * model.hidden * model.ffn


def expert_matrices(model: ModelSpec) -> int:
    """Elements of all the experts of a layer."""
    return 3 * model.hidden * model.expert_ffn * model.experts


def layer_rest(model: ModelSpec) -> int:
    """Elements of a layer's two norms, of its biases, of its query and key norms, and of its router."""
    family = FAMILIES.get(model.model_type)
    bias = model.query_rows + 2 * model.key_rows if family and family.qkv_bias else 0
    norms = 2 * model.head_dim if family and family.qk_norm else 0
    return 2 * model.hidden + bias + norms + model.hidden * model.experts


def embedding(model: ModelSpec, rows: int) -> int:
    """Elements of an embedding of so many rows."""
    return rows * model.hidden


def padded_rows(model: ModelSpec, parallelism: Parallelism, multiple: int = 128) -> int:
    """The vocabulary as Megatron pads it: to a multiple of 128 times the tensor parallelism
    (`make_vocab_size_divisible_by`, calculate_padded_vocab_size)."""
    return model.padded_vocabulary(multiple * parallelism.tensor)


def held_by_stage(model: ModelSpec, parallelism: Parallelism, stage: int) -> Held:
    """Parameters that a GPU of a pipeline stage (0 is the first) holds.

    Tied weights are held by the first and by the last stage. Where the layers do not divide, this is an average.
    """
    layers = model.layers / parallelism.pipeline
    last = stage == parallelism.pipeline - 1
    tables = (stage == 0) + (last and not (model.tied and stage == 0))
    vocabulary = tables * embedding(model, padded_rows(model, parallelism)) / parallelism.tensor
    matrices = (attention_matrices(model) + mlp_matrices(model)) / parallelism.tensor
    return Held(
        linear=layers * matrices,
        other=layers * layer_rest(model) + vocabulary + (model.hidden if last else 0),
        experts=layers * expert_matrices(model) / (parallelism.expert_shards * parallelism.expert),
    )
