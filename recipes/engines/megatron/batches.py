"""Our tokens as a training's global batches, of rows or packs of rows, and as a validation's.

`training` makes them; each engine hands them to its own framework. All sequences of a global batch get one length, so
that pipeline stages agree on it.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from data_prep.packing import Packing, pack
from reasonforge.errors import RequestError
from recipes.engines.megatron.options import MegatronEngine
from recipes.engines.megatron.rows import Order, Rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Sample = dict[str, "NDArray[np.int64]"]


@dataclass(frozen=True, eq=False)
class Batches:
    """The global batches of a training, in order: rows, or packs of rows, padded to one length in each batch."""

    rows: Rows
    order: Order
    size: int
    """Sequences of a global batch."""
    batches: int
    """How many there are."""
    multiple: int
    """What every length is a multiple of."""
    length: int | None = None
    """The length of every sequence; None: of each batch its longest, rounded up."""
    packing: Packing | None = None
    """The packs; None where each row is a sequence of its own."""
    shuffled: bool = True
    """False takes the rows once and in their own order, and fills the last batch up with rows that count nothing."""
    _lengths: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.size * self.batches

    def members(self, position: int) -> list[int]:
        """The rows of the sequence at a position; none for one that only fills up."""
        if not self.shuffled:
            return [position] if position < len(self.rows) else []
        item = self.order(position)
        if self.packing is None:
            return [item]
        return [int(row) for row in self.packing.order[self.packing.starts[item] : self.packing.starts[item + 1]]]

    def batch_rows(self, batch: int) -> list[int]:
        """The rows of a global batch, in order."""
        positions = range(batch * self.size, (batch + 1) * self.size)
        return [row for position in positions for row in self.members(position)]

    def batch_length(self, batch: int) -> int:
        """The length to which the sequences of a global batch are padded."""
        if self.length is not None:
            return self.length
        if batch not in self._lengths:
            longest = int(self.rows.lengths[self.batch_rows(batch)].max())
            self._lengths[batch] = rounded_up(longest, self.multiple)
        return self._lengths[batch]

    def __getitem__(self, position: int) -> Sample:
        """One sequence, int64 arrays of its batch's length: `tokens`, `labels`, `loss_mask`, `position_ids`; of packs
        also `boundaries`, where each row begins, and the length at the end."""
        import numpy as np

        members = self.members(position)
        length = self.batch_length(position // self.size)
        arrays = {key: np.zeros(length, np.int64) for key in ("tokens", "labels", "loss_mask", "position_ids")}
        boundaries = [0]
        for row in members or [0]:
            start, end = int(self.rows.starts[row]), int(self.rows.starts[row + 1])
            at = slice(boundaries[-1], boundaries[-1] + end - start - 1)
            arrays["tokens"][at] = self.rows.ids[start : end - 1]
            arrays["labels"][at] = self.rows.ids[start + 1 : end]
            arrays["loss_mask"][at] = self.rows.mask[start + 1 : end] if members else 0
            arrays["position_ids"][at] = np.arange(end - start - 1)
            boundaries.append(at.stop)
        if self.packing is None:
            arrays["position_ids"] = np.arange(length)
        else:
            arrays["boundaries"] = np.array([*boundaries, length] if boundaries[-1] < length else boundaries)
        return arrays


def training_batches(rows: Rows, engine: MegatronEngine, seed: int) -> Batches:
    """The batches of a training, as long as it may get. Raises RequestError where a row fits into no sequence."""
    longest, length = int(rows.lengths.max()), engine.sequence_length
    if length is not None and longest > length:
        name = rows.names([int(rows.lengths.argmax())])[0]
        raise RequestError(
            "engine.sequence_length",
            f"is {length}, but row {name} of the tokens has {longest + 1}, the last of which is predicted only",
            f"at least {longest}, or tokenize with a lower max_tokens",
        )
    step = engine.sequence_step
    if not engine.packed or length is None:  # packs have a length: the options see to it
        return Batches(rows, Order(len(rows), seed), engine.batch_size, engine.steps, step, length)
    # The packs are made here, of the mapped rows: NeMo would hold its own file of them in every process's memory.
    packing = pack(rows.lengths, length, seed=seed)
    order = Order(len(packing), seed)
    return Batches(rows, order, engine.batch_size, engine.steps, step, length, packing)


def validation_batches(rows: Rows, engine: MegatronEngine) -> Batches:
    """The first `engine.validation_batches` batches of the held-out rows, never packed, all of one length."""
    count = min(-(-len(rows) // engine.batch_size), engine.validation_batches)
    step, longest = engine.sequence_step, int(rows.lengths[: count * engine.batch_size].max())
    order = Order(len(rows), 0)
    return Batches(rows, order, engine.batch_size, count, step, rounded_up(longest, step), shuffled=False)


def rounded_up(length: int, multiple: int) -> int:
    """The least multiple that is not less."""
    return -(-length // multiple) * multiple


def last_step(batches: Batches, engine: MegatronEngine) -> int:
    """The step after which the training ends: `engine.steps`, or earlier the one that reaches `engine.tokens`."""
    if engine.tokens is None:
        return engine.steps
    trained = 0
    for step in range(engine.steps):
        trained += int(sum(batches.rows.learned[row] for row in batches.batch_rows(step)))
        if trained >= engine.tokens:
            return step + 1
    return engine.steps


def collate(samples: list[Sample], *, mask: bool) -> dict[str, Any]:
    """Stack the sequences of a micro-batch.

    Args:
        mask: whether an `attention_mask` is added (True: not seen), which megatron-core's own layers take.
    """
    import torch

    keys = ("tokens", "labels", "loss_mask", "position_ids")
    batch = {key: torch.stack([torch.from_numpy(sample[key]) for sample in samples]) for key in keys}
    batch["loss_mask"] = batch["loss_mask"].float()
    length = batch["tokens"].shape[1]
    if "boundaries" in samples[0]:
        (sample,) = samples
        # Both frameworks cut the list off at its least entry: -1 stands for the end.
        boundaries = torch.tensor([[*sample["boundaries"], -1]], dtype=torch.int32)
        batch["cu_seqlens"] = boundaries
        batch["cu_seqlens_argmin"] = torch.argmin(boundaries, dim=1, keepdim=True)
        batch["max_seqlen"] = torch.diff(boundaries[:, :-1]).max(dim=1, keepdim=True).values
        batch["attention_mask"] = torch.ones(1, dtype=torch.int64)  # asked for, and not looked at
    elif mask:
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        batch["attention_mask"] = ~seen.expand(len(samples), 1, length, length)
    return batch
