"""What a family's map is made of: lines that say which rows of which HF tensors make which rows of a Megatron tensor.

Names are those of transformers and of megatron-core's sharded state dict, where the layers are stacked under one key.
Each family's file lists its lines; `tensors` expands them for one model.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from checkpoints_conversion.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Piece:
    """`rows` rows of the HF tensor `source` from `source_row` on are the Megatron tensor's rows from `row` on."""

    source: str
    source_row: int
    row: int
    rows: int


@dataclass(frozen=True)
class MegatronTensor:
    """One matrix or vector of the Megatron model, at its place in the stack that its key names."""

    key: str
    index: tuple[int, ...]
    """Its place in the stack: (), (layer,) or (layer, expert)."""
    stack: tuple[int, ...]
    """The stack's size: (), (layers,) or (layers, experts)."""
    rows: int
    columns: int
    """0 for a vector, whose elements are its rows."""
    pieces: tuple[Piece, ...]
    """What its rows are made of; rows that no piece covers are padding, all zeros."""
    chunks: int = 1
    """Into how many equal parts of rows megatron-core itself cuts it without tensor parallelism: gate and up are 2."""

    padded: bool = False
    """Whether its rows are the vocabulary, which training may have padded further."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its own shape, without the stack."""
        return (self.rows, self.columns) if self.columns else (self.rows,)

    @property
    def label(self) -> str:
        """Key and place, for people."""
        return self.key + (f"[{', '.join(map(str, self.index))}]" if self.index else "")


Arrange = Callable[[ModelSpec, tuple[str, ...]], tuple[Piece, ...]]
Size = Callable[[ModelSpec], int]


@dataclass(frozen=True)
class Line:
    """One Megatron key: the HF names that go in, how their rows are arranged, and the shape."""

    key: str
    sources: tuple[str, ...]
    """HF names; `{layer}` and `{expert}` stand for numbers."""
    arrange: Arrange
    columns: Size | None
    """None for a vector."""
    chunks: int = 1
    only: Callable[[ModelSpec], bool] = lambda _spec: True
    """Whether a model has it."""
    padded: bool = False
    """Whether its rows are the vocabulary, which Megatron pads."""


@dataclass(frozen=True)
class Family:
    """A family of models: how it is recognised, and its lines."""

    model_type: str
    architecture: str
    outside: tuple[Line, ...]
    layer: tuple[Line, ...]
    expert: tuple[Line, ...] = ()
    extra_states: tuple[str, ...] = ()
    """Modules of a layer for which Transformer Engine keeps a state beside the weights; empty ones are written."""
    expert_extra_states: tuple[str, ...] = ()
    qkv_bias: bool = False
    qk_norm: bool = False
    local_keys: tuple[tuple[str, str], ...] = ()
    """Keys that megatron-core's local layer spec spells otherwise than the Transformer Engine spec: (TE, local)."""


def whole(size: Size) -> Arrange:
    """One HF tensor as it is."""

    def arrange(spec: ModelSpec, sources: tuple[str, ...]) -> tuple[Piece, ...]:
        return (Piece(sources[0], 0, 0, size(spec)),)

    return arrange


def interleaved_qkv(spec: ModelSpec, sources: tuple[str, ...]) -> tuple[Piece, ...]:
    """Query, key and value rows, group by group: the queries of a group, its key, its value (megatron-core's order)."""
    query, key, value = sources
    wide = spec.heads // spec.groups * spec.head_dim
    narrow = spec.head_dim
    pieces: list[Piece] = []
    for group in range(spec.groups):
        start = group * (wide + 2 * narrow)
        pieces += (
            Piece(query, group * wide, start, wide),
            Piece(key, group * narrow, start + wide, narrow),
            Piece(value, group * narrow, start + wide + narrow, narrow),
        )
    return tuple(pieces)


def stacked(size: Size) -> Arrange:
    """HF tensors of one size, one under the other: gate, then up."""

    def arrange(spec: ModelSpec, sources: tuple[str, ...]) -> tuple[Piece, ...]:
        rows = size(spec)
        return tuple(Piece(source, 0, number * rows, rows) for number, source in enumerate(sources))

    return arrange


def tensors(family: Family, spec: ModelSpec, vocabulary_multiple: int) -> Iterator[MegatronTensor]:
    """Every tensor of the Megatron model, in the order of its layers.

    Args:
        vocabulary_multiple: embedding and output rows are padded to a multiple of this.
    """
    outside = [_expand(line, spec, (), ()) for line in family.outside if line.only(spec)]
    padded = spec.padded_vocabulary(vocabulary_multiple)
    outside = [replace(found, rows=padded) if found.padded else found for found in outside]
    yield outside[0]
    for layer in range(spec.layers):
        for line in family.layer:
            yield _expand(line, spec, (layer,), (spec.layers,))
        for expert in range(spec.experts):
            for line in family.expert:
                yield _expand(line, spec, (layer, expert), (spec.layers, spec.experts))
    yield from outside[1:]


def _expand(line: Line, spec: ModelSpec, index: tuple[int, ...], stack: tuple[int, ...]) -> MegatronTensor:
    numbers = dict(zip(("layer", "expert"), index, strict=False))
    pieces = line.arrange(spec, tuple(source.format(**numbers) for source in line.sources))
    columns = line.columns(spec) if line.columns else 0
    rows = sum(piece.rows for piece in pieces)
    return MegatronTensor(line.key, index, stack, rows, columns, pieces, line.chunks, line.padded)


def extra_state_keys(family: Family, spec: ModelSpec) -> Iterator[str]:
    """The keys of the empty states that Transformer Engine modules look for when they load."""
    for layer in range(spec.layers):
        for module in family.extra_states:
            yield f"decoder.layers.{module}._extra_state/shard_{layer}_{spec.layers}"
        for expert in range(spec.experts):
            for module in family.expert_extra_states:
                yield f"decoder.layers.{module}._extra_state/shard_{layer}.{expert}_{spec.layers}.{spec.experts}"
    yield "decoder.final_layernorm._extra_state/shard_0_1"
