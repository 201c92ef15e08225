"""Near-duplicates: found at every similarity above the threshold, never below, and the same however rows are cut."""

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_prep.overlap.deduplication import Duplicate, NearDeduplicator, NearDuplicates, Overlap, _text_of
from data_prep.overlap.hashing import Unit, run_hashes, split_units
from data_prep.overlap.minhash import BINS, RECALL, Index, bands_and_rows, sketch
from data_prep.overlap.native import compiled

Row = dict[str, str]
DRAW = random.Random(7)
VOCABULARY = [f"{DRAW.choice('abcdefgh')}{number}" for number in range(4000)]


def rows_of(texts: Sequence[str], prefix: str = "r") -> list[Row]:
    return [{"id": f"{prefix}{number}", "text": text} for number, text in enumerate(texts)]


def find(rows: Sequence[Row], directory: Path, batch: int = 100, **options: object) -> list[Duplicate | None]:
    near = NearDeduplicator(NearDuplicates.model_validate({"columns": ["text"], **options}), directory)
    return [one for start in range(0, len(rows), batch) for one in near.find(rows[start : start + batch])]


def similarity(one: str, two: str, size: int = 5, characters: bool = False) -> float:
    """The definition, by Python's own sets."""
    first, second = (
        set(_shingles(" ".join(text.split()) if characters else text.split(), size)) for text in (one, two)
    )
    return len(first & second) / len(first | second) if first or second else 1.0


def _shingles(units: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(units[at : at + size]) for at in range(max(min(1, len(units)), len(units) - size + 1))]


def planted(count: int, words: int, changes: int, seed: int) -> tuple[list[str], list[str]]:
    draw = random.Random(seed)
    texts = [draw.choices(VOCABULARY, k=words) for _ in range(count)]
    copies = [list(text) for text in texts]
    for copy in copies:
        for _ in range(changes):
            copy[draw.randrange(words)] = draw.choice(VOCABULARY)
    return [" ".join(text) for text in texts], [" ".join(text) for text in copies]


@pytest.mark.parametrize(("words", "changes"), [(400, 0), (400, 1), (400, 4), (400, 8), (30, 1), (60, 1), (2000, 30)])
def test_planted_near_duplicates_are_found_and_named(tmp_path: Path, words: int, changes: int) -> None:
    texts, copies = planted(300, words, changes, seed=words + changes)
    found = find(rows_of([*texts, *copies]), tmp_path)
    assert found[:300] == [None] * 300
    pairs = [similarity(*pair) for pair in zip(texts, copies, strict=True)]
    similar = [number for number, value in enumerate(pairs) if value >= 0.8]
    hits = [number for number in range(300) if found[300 + number]]
    for number in hits:
        assert found[300 + number] == Duplicate(f"r{number}", pairs[number])
    assert set(hits) <= set(similar)  # no false positive
    assert len(hits) >= 0.98 * len(similar)
    assert (words, changes) == (30, 1) or similar, "the case must test something"


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9, 1.0])
def test_the_threshold_is_one_of_real_similarity(tmp_path: Path, threshold: float) -> None:
    texts, copies = planted(200, 200, 3, seed=1)
    found = find(rows_of([*texts, *copies, *texts]), tmp_path, threshold=threshold)
    for text, copy, one in zip(texts, copies, found[200:400], strict=True):
        assert one is None or one.similarity == similarity(text, copy) >= threshold
    assert all(one is not None and one.similarity >= threshold for one in found[400:])
    expected = sum(similarity(*pair) >= threshold for pair in zip(texts, copies, strict=True))
    assert sum(one is not None for one in found[200:400]) >= 0.98 * expected


WORDS = st.lists(st.sampled_from(["a", "b", "c", "é", "\ud83d"]), max_size=9).map(" ".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(texts=["a", "a a a a a"], batch=1, threshold=0.8, size=1)
@example(texts=["c a b", "a b c b"], batch=1, threshold=0.5, size=1)
@given(st.lists(WORDS, max_size=25), st.integers(1, 30), st.sampled_from([0.5, 0.8, 1.0]), st.integers(1, 3))
def test_any_cut_drops_the_same_rows_and_names_kept_ones(
    tmp_path: Path, texts: list[str], batch: int, threshold: float, size: int
) -> None:
    rows = rows_of(texts)
    found = find(rows, tmp_path, batch, threshold=threshold, size=size)
    assert found == find(rows, tmp_path, 1, threshold=threshold, size=size)
    kept = [number for number, one in enumerate(found) if one is None]
    for number, one in enumerate(found):
        earlier = [other for other in kept if other < number]
        if one is None:  # a row with a set that was there before never stays
            assert all(similarity(texts[number], texts[other], size) < 1 for other in earlier)
        else:
            of = int(one.of[1:])
            assert of in earlier
            assert one.similarity == similarity(texts[number], texts[of], size) >= threshold


def test_sources_and_their_shards_are_one_row_of_rows(tmp_path: Path) -> None:
    """Two sources, cut into 1, 4 and 7 shards, the first with its copies in the second."""
    texts, copies = planted(140, 100, 1, seed=3)
    rows = rows_of(texts, "first-") + rows_of(copies, "second-")
    whole = find(rows, tmp_path, len(rows))
    for shards in (1, 4, 7):
        near = NearDeduplicator(NearDuplicates(columns=["text"]), tmp_path)
        cut = [rows[len(rows) * one // shards : len(rows) * (one + 1) // shards] for one in range(shards)]
        assert [one for shard in cut for one in near.find(shard)] == whole
    assert {one.of.split("-")[0] for one in whole if one} == {"first"}


@pytest.mark.parametrize("options", [{}, {"shingle": "characters", "size": 9}, {"threshold": 0.5, "size": 1}])
def test_numba_and_numpy_give_the_same(
    tmp_path: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    texts, copies = planted(60, 80, 1, seed=5)
    awkward = ["", "one", "", "two words", "日本語のテキスト", "日本語のテキスト", "\ud800 a", " one ", "x" * 3000]
    rows = rows_of([*texts, *awkward, *copies, *awkward, "the same words " * 400])
    fast = find(rows, tmp_path, **options)
    monkeypatch.setitem(sys.modules, "numba", None)
    compiled.cache_clear()
    assert find(rows, tmp_path, 7, **options) == fast
    monkeypatch.undo()
    compiled.cache_clear()
    assert sum(one is not None for one in fast) >= 60


@pytest.mark.parametrize("shingle", ["words", "characters"])
@pytest.mark.parametrize("alphabet", [["a", "b"], ["a", "b", "c", "é"], ["aa", "a", "b", "abc", "x" * 20]])
def test_the_similarity_is_that_of_the_sets_whatever_the_texts_repeat(shingle: Unit, alphabet: list[str]) -> None:
    draw = random.Random(9)
    for size in (1, 2, 3, 5):
        texts = [" ".join(draw.choices(alphabet, k=draw.randint(1, 14))) for _ in range(30)]
        units = split_units(texts, shingle)
        overlap = Overlap(NearDuplicates(shingle=shingle, size=size))
        for row, text in enumerate(texts):
            for other, another in enumerate(texts):
                if text != another:
                    expected = similarity(text, another, size, shingle == "characters")
                    assert overlap.similarity(_text_of(units, row), _text_of(units, other)) == expected


@pytest.mark.parametrize("numba", [True, False], ids=["numba", "numpy"])
@pytest.mark.parametrize("different", [1, 3, 40, 150, 600])
def test_a_signature_is_one_of_the_set_of_shingles(
    different: int, numba: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shingles of one word, in any order and repeated."""
    if numba:
        pytest.importorskip("numba")
    else:
        monkeypatch.setitem(sys.modules, "numba", None)
        compiled.cache_clear()
    draw = random.Random(different)
    words = draw.sample(VOCABULARY, different)
    texts = [" ".join(words), " ".join(words[::-1])]
    for times in (1, 2, 5, 30):
        repeated = words + draw.choices(words, k=different * times)
        draw.shuffle(repeated)
        texts.append(" ".join(repeated))
    units = split_units([*texts, " ".join(f"{word}x" for word in words)])
    signatures = sketch(run_hashes(units, 1), units.offsets, 1, BINS)
    monkeypatch.undo()
    compiled.cache_clear()
    assert (signatures[:-1] == signatures[0]).all()
    assert (signatures[-1] != signatures[0]).mean() > 0.9


def test_empty_short_and_very_long_texts(tmp_path: Path) -> None:
    long = " ".join(random.Random(2).choices(VOCABULARY, k=200_000))
    texts = ["", "  \n", "one", "one ", "One", long, "a b c", "a  b\tc", long + " more", "ａ b", "a" * 1_000_000, ""]
    found = find(rows_of(texts), tmp_path)
    names = [one and one.of for one in found]
    assert names == [None, "r0", None, "r2", None, None, None, "r6", "r5", None, None, "r0"]
    assert found[8] == Duplicate("r5", similarity(long, long + " more"))


def test_similarity_is_not_handed_on(tmp_path: Path) -> None:
    """b is like a, c is like b and not like a: c stays, as b is not there to stand for it."""
    words = random.Random(4).sample(VOCABULARY, 100)
    a, b, c = (" ".join(words[start : start + 80]) for start in (0, 7, 14))
    assert similarity(a, b) >= 0.8 <= similarity(b, c)
    assert similarity(a, c) < 0.8
    found = find(rows_of([a, b, c]), tmp_path)
    assert [one and one.of for one in found] == [None, "r0", None]


def test_a_phrase_that_all_rows_share_does_not_make_them_equal(tmp_path: Path) -> None:
    draw = random.Random(6)
    phrase = " ".join(draw.choices(VOCABULARY, k=150))
    texts = [f"{phrase} {' '.join(draw.choices(VOCABULARY, k=60))}" for _ in range(400)]
    assert max(similarity(texts[0], text) for text in texts[1:]) < 0.8
    assert find(rows_of(texts), tmp_path) == [None] * 400


def test_characters_compare_languages_without_spaces(tmp_path: Path) -> None:
    text = "".join(random.Random(8).choices([chr(code) for code in range(0x4E00, 0x4F00)], k=300))
    texts = [text, text[:150] + "字" + text[151:], text[::-1]]
    found = find(rows_of(texts), tmp_path, shingle="characters", size=9)
    assert found == [None, Duplicate("r0", similarity(texts[0], texts[1], 9, characters=True)), None]


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.75, 0.8, 0.9, 0.99])
def test_bands_reach_the_recall_they_promise(threshold: float) -> None:
    bands, rows = bands_and_rows(threshold)
    assert bands * rows <= BINS
    assert 1 - (1 - threshold**rows) ** bands >= RECALL
    assert 1 - (1 - threshold ** (rows + 1)) ** (BINS // (rows + 1)) < RECALL or rows == 16


@pytest.mark.parametrize("size", [9, 45, 90, 180, 288, 450])
def test_pairs_at_the_threshold_become_candidates_as_promised(size: int) -> None:
    """Sets of so many words, of which two share 8 of 10; of 2000 pairs the part that is found errs by .002."""
    draw, rows = random.Random(size), []
    vocabulary = [f"w{number}" for number in range(20_000)]
    for _ in range(2000):
        words = draw.sample(vocabulary, size + size // 9)
        rows += [" ".join(words[:size]), " ".join(words[size // 9 :])]
    index = Index(0.8)
    units = split_units(rows)
    bands = sketch(run_hashes(units, 1), units.offsets, 1, index.bins).reshape(2000, 2, index.bands, index.rows)
    assert (bands[:, 0] == bands[:, 1]).all(2).any(1).mean() >= RECALL - 0.002


def test_the_index_grows(tmp_path: Path) -> None:
    texts = [f"{number} {number + 1} {number * 7} x{number}" for number in range(5000)]
    rows = rows_of([*texts, *texts[::50]])
    found = find(rows, tmp_path, 600)
    assert [one and one.of for one in found] == [None] * 5000 + [f"r{number}" for number in range(0, 5000, 50)]
