"""The batches of the engines on Megatron-core: which rows, in which order, padded or packed how far."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonforge.errors import RequestError
from recipes.engines.megatron.batches import Batches, collate, last_step, training_batches, validation_batches
from recipes.engines.megatron.rows import Order, Rows, map_rows, unfold
from recipes.engines.nemo.options import NeMoEngine

SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("completion_mask", pa.list_(pa.int8())), ("id", pa.string())])


def write_tokens(path: Path, lengths: list[int]) -> None:
    rows = [
        {
            "input_ids": [1000 * number + place for place in range(length)],
            "completion_mask": [0] * (length // 2) + [1] * (length - length // 2),
            "id": f"row-{number}",
        }
        for number, length in enumerate(lengths)
    ]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)


def open_rows(root: Path, lengths: list[int]) -> Rows:
    root.mkdir(exist_ok=True)
    write_tokens(root / "tokens.parquet", lengths)
    unfold(root / "tokens.parquet", root / "flat")
    return map_rows(root / "tokens.parquet", root / "flat")


def engine(**options: Any) -> NeMoEngine:
    return NeMoEngine.model_validate({"steps": 4, "batch_size": 2, **options})


def test_rows_are_mapped_as_they_were(tmp_path: Path) -> None:
    rows = open_rows(tmp_path, [5, 2, 9])
    assert len(rows) == 3
    assert rows.lengths.tolist() == [4, 1, 8]
    assert rows.learned.tolist() == [3, 1, 5]
    assert rows.ids[rows.starts[2] : rows.starts[3]].tolist() == [2000 + place for place in range(9)]
    assert rows.names([2, 0]) == ["row-2", "row-0"]
    assert not [path for path in tmp_path.iterdir() if ".tmp" in path.name]


@pytest.mark.parametrize(("lengths", "said"), [([], "has no rows"), ([4, 1], "has a row of less than two tokens")])
def test_rows_that_predict_nothing_are_refused(tmp_path: Path, lengths: list[int], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        open_rows(tmp_path / "r", lengths)
    assert not (tmp_path / "r/flat").exists()


@given(rows=st.integers(1, 30), seed=st.integers(0, 2**31 - 1), epochs=st.integers(1, 3))
def test_every_epoch_takes_every_row_once(rows: int, seed: int, epochs: int) -> None:
    order = Order(rows, seed)
    for epoch in range(epochs):
        assert sorted(order.batch(epoch, rows)) == list(range(rows))
    late = Order(rows, seed)  # a process that begins in the midst
    assert [late(place) for place in range(rows, 2 * rows)] == order.batch(1, rows)


def test_the_order_is_the_seeds() -> None:
    assert Order(5, 0).batch(0, 10) == [2, 0, 3, 4, 1, 0, 1, 3, 2, 4]  # written down: a new numpy must not change it
    assert Order(100, 0).batch(0, 100) != Order(100, 1).batch(0, 100)


def test_a_sequence_predicts_the_next_token_and_is_padded_to_its_batch(tmp_path: Path) -> None:
    rows = open_rows(tmp_path, [5, 2, 9, 4])
    batches = training_batches(rows, engine(), seed=0)
    for position in range(len(batches)):
        (row,) = batches.members(position)
        found, length = batches[position], int(rows.lengths[row])
        longest = max(int(rows.lengths[other]) for other in batches.batch_rows(position // 2))
        assert {array.shape for array in found.values()} == {(longest,)}
        assert found["tokens"][:length].tolist() == [1000 * row + place for place in range(length)]
        assert found["labels"][:length].tolist() == [1000 * row + place + 1 for place in range(length)]
        assert found["loss_mask"].sum() == rows.learned[row]
        assert not found["loss_mask"][length:].any()
        assert found["position_ids"].tolist() == list(range(longest))
        assert batches.batch_length(position // 2) == longest


def test_lengths_are_what_the_layout_needs(tmp_path: Path) -> None:
    rows = open_rows(tmp_path, [5, 2, 9, 4])
    shared = engine(parallelism={"tensor": 2, "context": 2, "sequence_parallel": True})
    batches = training_batches(rows, shared, seed=0)
    assert {batches.batch_length(step) % 8 for step in range(4)} == {0}
    assert training_batches(rows, engine(sequence_length=16), seed=0)[0]["tokens"].shape == (16,)
    with pytest.raises(RequestError, match=r"is 7, but row row-2 of the tokens has 9, .* at least 8"):
        training_batches(rows, engine(sequence_length=7), seed=0)


def test_packs_hold_every_row_once_and_know_where_each_begins(tmp_path: Path) -> None:
    rows = open_rows(tmp_path, [5, 2, 9, 4, 7, 3, 3, 6])
    packed = training_batches(rows, engine(packed=True, sequence_length=12, batch_size=1, steps=3), seed=0)
    assert packed.packing is not None
    taken = [row for position in range(len(packed.packing)) for row in packed.members(position)]
    assert sorted(taken) == list(range(8))
    for position in range(len(packed)):
        found, members = packed[position], packed.members(position)
        filled = int(rows.lengths[members].sum())
        starts = np.concatenate([[0], np.cumsum(rows.lengths[members])]).tolist()
        assert found["boundaries"].tolist() == (starts if filled == 12 else [*starts, 12])
        assert found["loss_mask"].sum() == rows.learned[members].sum()
        for row, start in zip(members, starts, strict=False):
            assert found["tokens"][start] == 1000 * row
            assert found["position_ids"][start] == 0
        batch = collate([found], mask=False)
        kept = batch["cu_seqlens"][0, : batch["cu_seqlens_argmin"].item()]
        assert kept.tolist() == found["boundaries"].tolist()
        assert batch["max_seqlen"].item() == max(np.diff(found["boundaries"]))


def test_held_out_rows_fill_the_last_batch_with_nothing(tmp_path: Path) -> None:
    rows = open_rows(tmp_path, [5, 2, 9])
    held_out = validation_batches(rows, engine(validate_every=1))
    assert (len(held_out), held_out.length) == (4, 8)
    assert [held_out.members(position) for position in range(4)] == [[0], [1], [2], []]
    assert held_out[3]["loss_mask"].sum() == 0
    assert len(validation_batches(rows, engine(validate_every=1, validation_batches=1))) == 2


def test_it_ends_after_the_step_that_reaches_the_tokens(tmp_path: Path) -> None:
    rows = open_rows(tmp_path, [4, 4, 4, 4])  # two learned tokens each
    batches: Batches = training_batches(rows, engine(), seed=0)
    assert last_step(batches, engine()) == 4
    assert [last_step(batches, engine(tokens=count)) for count in (1, 4, 5, 16, 99)] == [1, 1, 2, 4, 4]


def test_megatrons_own_layers_get_a_causal_mask(tmp_path: Path) -> None:
    batches = training_batches(open_rows(tmp_path, [4, 3]), engine(), seed=0)
    batch = collate([batches[0], batches[1]], mask=True)
    assert batch["attention_mask"].shape == (2, 1, 3, 3)
    assert batch["attention_mask"][0, 0].tolist() == [[False, True, True], [False, False, True], [False] * 3]
    assert "attention_mask" not in collate([batches[0]], mask=False)
