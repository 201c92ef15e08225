from hypothesis import given
from hypothesis import strategies as st

from data_prep.decontamination import Decontamination, EvaluationIndex

LONG = "Find the number of ordered pairs (a, b) of positive integers with a + b = 1000 and no zero digit."


def index(*prompts: str, n: int = 13) -> EvaluationIndex:
    problems = [{"id": f"eval-{number}", "prompt": prompt} for number, prompt in enumerate(prompts)]
    return EvaluationIndex(problems, Decontamination(n=n))


def test_a_run_of_thirteen_words_is_found_with_its_place() -> None:
    shared = LONG.split()[2:17]
    prompt = " ".join(["Hello,", "PLEASE", *map(str.upper, shared), "thanks"])
    hits = index("What is 2+2?", LONG).hits(prompt)
    assert hits == [{"problem_id": "eval-1", "words": [2, 17], "text": " ".join(shared)}]
    assert index(LONG).hits(" ".join(shared[:12])) == []
    assert len(index(LONG, n=12).hits(" ".join(shared[:12]))) == 1


def test_punctuation_counts() -> None:
    # As words these differ in punctuation only, as the mathematics of two problems may.
    assert index(LONG).hits(LONG.replace("a + b", "a - b").replace("(a, b)", "(a b)")) == []


def test_a_short_problem_is_found_where_the_whole_prompt_is_equal() -> None:
    short = index("Start: 9\na+3\nb+6", LONG)
    found = {"problem_id": "eval-0", "words": [0, 4], "text": "start: 9 a+3 b+6"}
    assert short.hits("start: 9 a+3\tb+6 ") == [found]
    assert short.hits("Start: 9\na+3\nb+6\nc+1") == []
    assert short.hits("Start: 9\na+3") == []


def test_every_problem_that_is_hit_is_named() -> None:
    hits = index(LONG, "Or: " + LONG).hits(LONG)
    assert [hit["problem_id"] for hit in hits] == ["eval-0", "eval-1"]
    twice = index(LONG).hits(LONG + " And now once more, please: " + LONG)
    assert [hit["words"] for hit in twice] == [[0, 21], [26, 47]]


WORDS = st.lists(st.sampled_from(["a", "B", "c=1"]), max_size=14)


@given(st.lists(WORDS, max_size=4), WORDS, st.integers(2, 5))
def test_a_hit_is_what_the_naive_loops_find(problems: list[list[str]], words: list[str], n: int) -> None:
    prompts = [" ".join(problem) for problem in problems]
    hits = index(*prompts, n=n).hits(" ".join(words))
    lower = [word.lower() for word in words]
    expected: dict[str, set[int]] = {}
    for number, problem in enumerate(problems):
        other = [word.lower() for word in problem]
        places = {
            place
            for start in range(len(lower) - n + 1)
            for at in range(len(other) - n + 1)
            if lower[start : start + n] == other[at : at + n]
            for place in range(start, start + n)
        }
        if places or (len(other) < n and other == lower):
            expected[f"eval-{number}"] = places or set(range(len(lower)))
    found: dict[str, set[int]] = {}
    for hit in hits:
        found.setdefault(hit["problem_id"], set()).update(range(*hit["words"]))
        assert hit["text"] == " ".join(lower[slice(*hit["words"])])
    assert found == expected
