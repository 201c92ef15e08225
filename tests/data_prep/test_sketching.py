from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.overlap.deduplication import NearDeduplicator, NearDuplicates
from data_prep.overlap.sketching import SketchedDeduplicator, sketch_rows

WORDS = st.lists(st.sampled_from(["a", "b", "c", "é"]), max_size=9).map(" ".join)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(WORDS, max_size=25),
    st.integers(1, 30),
    st.sampled_from([0.5, 0.8, 1.0]),
    st.integers(1, 3),
    st.sampled_from(["words", "characters"]),
)
def test_two_halves_find_what_one_finds(
    tmp_path: Path, texts: list[str], batch: int, threshold: float, size: int, shingle: str
) -> None:
    config = NearDuplicates.model_validate(
        {"threshold": threshold, "size": size, "shingle": shingle, "columns": ["text"]}
    )
    rows = [{"id": f"r{number}", "text": text} for number, text in enumerate(texts)]
    near = SketchedDeduplicator(config, lambda number: rows[number // 10])
    found = []
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        found += near.find(sketch_rows(some, config), [10 * number for number in range(start, start + len(some))])
    assert found == (NearDeduplicator(config, tmp_path).find(rows) if rows else [])
