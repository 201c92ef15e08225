from hypothesis import given
from hypothesis import strategies as st

from data_prep.overlap.deduplication import Deduplicator


def row(name: str, prompt: str, response: str) -> dict[str, str]:
    return {"id": name, "prompt": prompt, "response": response}


def test_the_first_of_equal_rows_is_kept() -> None:
    seen = Deduplicator()
    rows = [
        row("a", "What is  1+1?", "2"),
        row("b", "What is 1+1?", "2\n"),
        row("c", "What is 1+1?", "two"),
        row("d", "what is 1+1?", "2"),
        row("e", "What is", "1+1? 2"),
        row("f", " What is\n1+1?", " 2"),
    ]
    assert [seen.first(one) for one in rows] == [None, "a", None, None, None, "a"]


@given(st.lists(st.tuples(st.sampled_from(["a", "a ", "b"]), st.sampled_from(["x", " x", "y z", "y  z"])), max_size=20))
def test_what_is_kept_is_what_a_dictionary_keeps(pairs: list[tuple[str, str]]) -> None:
    seen = Deduplicator()
    first: dict[tuple[tuple[str, ...], tuple[str, ...]], str] = {}
    for index, (prompt, response) in enumerate(pairs):
        known = first.setdefault((tuple(prompt.split()), tuple(response.split())), str(index))
        assert seen.first(row(str(index), prompt, response)) == (None if known == str(index) else known)


def test_half_a_surrogate_pair_is_text_too() -> None:
    seen = Deduplicator()
    assert [seen.first(row(name, "\ud800", "")) for name in "ab"] == [None, "a"]
