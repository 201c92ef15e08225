"""Parquet files put together by their bytes, read by pyarrow."""

from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.formats.parquet_parts import concatenate
from reasonforge.errors import RequestError


def save(path: Path, rows: int, seed: int, **options: Any) -> pa.Table:
    random = Random(seed)
    table = pa.table(
        {
            "ids": pa.array([random.choices(range(300), k=n * 7 % 9) for n in range(rows)], pa.list_(pa.int32())),
            "name": pa.array([f"row {n}" if n % 5 else None for n in range(rows)], pa.string()),
            "number": pa.array([random.random() for _ in range(rows)], pa.float64()),
        }
    )  # fmt: skip
    pq.write_table(table, path, row_group_size=40, **options)
    return table


def joined(paths: list[Path], target: Path) -> Path:
    with open(target, "wb") as handle:
        concatenate(paths, handle)
    return target


@pytest.mark.parametrize(
    "options",
    [{"compression": "zstd"}, {"compression": "none", "use_dictionary": False}, {"write_page_index": True},
     {"data_page_version": "2.0", "write_statistics": False}, {"version": "1.0", "data_page_size": 64}],
)  # fmt: skip
def test_the_rows_are_those_of_the_parts(tmp_path: Path, options: dict[str, Any]) -> None:
    options = {"write_page_index": False, **options}
    sizes = (100, 0, 1, 700)
    paths = [tmp_path / f"{number}.parquet" for number in range(len(sizes))]
    tables = [save(path, size, size, **options) for path, size in zip(paths, sizes, strict=True)]
    found = joined(paths, tmp_path / "joined.parquet")
    expected = pa.concat_tables(tables)
    assert pq.read_table(found).equals(expected)
    assert pq.read_table(found, filters=[("name", "=", "row 99")]).num_rows == 2
    with pq.ParquetFile(found) as file:
        assert file.metadata.num_rows == 801
        assert file.num_row_groups == 23  # the one without rows has one
        assert file.read_row_group(22).equals(expected.slice(781))
        assert [len(batch) for batch in file.iter_batches(300)] == [300, 300, 201]


def test_one_part_keeps_its_rows_and_many_join_in_any_grouping(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.parquet" for number in range(5)]
    for number, path in enumerate(paths):
        save(path, 50, number)
    at_once = joined(paths, tmp_path / "at_once").read_bytes()
    pairs = [joined(paths[:2], tmp_path / "a"), joined(paths[2:], tmp_path / "b")]
    assert joined(pairs, tmp_path / "c").read_bytes() == at_once


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.parquet", 5, 1)
    pq.write_table(pa.table({"other": [1]}), tmp_path / "b.parquet")
    with pytest.raises(RequestError, match=r"b\.parquet: it has other columns than .*a\.parquet"):
        joined([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "out")
    for content in (b"", b"PAR1", (tmp_path / "a.parquet").read_bytes()[:-3]):
        (tmp_path / "cut.parquet").write_bytes(content)
        with pytest.raises(RequestError, match="not a whole parquet file"):
            joined([tmp_path / "cut.parquet"], tmp_path / "out")
