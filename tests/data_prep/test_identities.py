"""Ids that come again are found in any order of rows and files, as a dictionary finds them."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from data_prep.overlap.identities import Identities, Repeat

IDS = st.sampled_from([f"id-{number}" for number in range(12)])
CONTENTS = st.sampled_from([b"", b"one", b"two" * 9, b"\0"])


@given(st.lists(st.lists(st.tuples(IDS, CONTENTS), max_size=12), max_size=4))
def test_repeats_are_those_of_a_dictionary(files: list[list[tuple[str, bytes]]]) -> None:
    ids, expected, number = Identities(), [], 0
    first: dict[str, tuple[int, int, bytes]] = {}
    places = []
    for at, rows in enumerate(files):
        ids.enter(Path(f"{at}.jsonl"))
        for line, (name, content) in enumerate(rows, start=1):
            ids.add(name, line, content)
            places.append(f"{at}.jsonl:{line}")
            known = first.setdefault(name, (number, at, content))
            if known[0] != number:
                same = known[1] != at and known[2] == content and content.strip(b"\0") != b""
                expected.append(Repeat(number, known[0], same))
            number += 1
    assert list(ids.repeats()) == expected
    assert [ids.place(one) for one in range(number)] == places
