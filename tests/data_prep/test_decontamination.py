import random
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.overlap.decontamination import Decontamination, EvaluationIndex
from data_prep.overlap.native import compiled

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


NINE = "How many primes lie between 10 and 30, inclusive?"


def test_a_problem_of_eight_words_is_found_anywhere() -> None:
    prompt = f"Solve it. {NINE} Think step by step."
    assert index(NINE, LONG).hits(prompt) == [{"problem_id": "eval-0", "words": [2, 11], "text": NINE.lower()}]
    assert index(NINE).hits(prompt.replace("inclusive", "exclusive")) == []
    strict = EvaluationIndex([{"id": "e", "prompt": NINE}], Decontamination(inside=12))
    assert strict.hits(prompt) == []
    assert len(strict.hits(f"Solve it.\n{NINE}\nThink.")) == 1


@pytest.mark.parametrize("item", ["Simplify $\\sqrt{180}$.", "Start: 9\na+3\nb+6", "Hello", "one two three four five"])
def test_a_shorter_one_is_found_where_it_is_a_block_of_its_own(item: str) -> None:
    one = index(item, LONG)
    for prompt in (item, f"Solve this.\n\n{item}\n\nPut it in a box.", f"{item}\n\n \nThink.", f"Think.\n\n{item}  "):
        assert [hit["text"] for hit in one.hits(prompt)] == [" ".join(item.lower().split())], prompt
    assert one.hits(f"Yes {item}") == one.hits(f"{item} no") == one.hits(f"Yes {item} no") == []
    assert bool(one.hits(f"Solve:\n{item}\nc+1")) == ("\n" not in item)  # a line, where it is one
    anywhere = EvaluationIndex([{"id": "e", "prompt": item}], Decontamination(inside=1))
    assert len(anywhere.hits(f"Yes {item} no")) == 1


def test_a_short_problem_that_begins_another_is_no_hit() -> None:
    assert index("Start: 9\na+3").hits("Start: 9\na+3\nb+6") == []
    assert index("b+6\nc-1").hits("Start: 9\na+3\nb+6\nc-1") == []


def test_benchmarks_are_named() -> None:
    problems = [{"id": "1", "prompt": LONG, "benchmark": "aime"}, {"id": "1", "prompt": LONG, "benchmark": "math"}]
    hits = EvaluationIndex(problems, Decontamination()).hits(LONG)
    assert [(hit["benchmark"], hit["problem_id"]) for hit in hits] == [("aime", "1"), ("math", "1")]


def test_a_benchmark_without_problems_hits_nothing() -> None:
    assert index().find(["", "a", LONG]) == [[], [], []]


def test_no_text_meets_a_problem_without_text_only() -> None:
    assert index("", LONG).find(["", "a"]) == [[{"problem_id": "eval-0", "words": [0, 0], "text": ""}], []]


def planted() -> tuple[list[str], list[str], list[int]]:
    """Problems of 1 to 60 words, texts, and which problem is planted in each text, or -1."""
    draw = random.Random(0)
    words = [f"{draw.choice('abcxyz$')}{number}" for number in range(3000)]
    problems = [" ".join(draw.choices(words, k=number % 60 + 1)) for number in range(600)]
    texts, truth = [], []
    for number in range(1200):
        before, after = (" ".join(draw.choices(words, k=draw.randint(0, 90))) for _ in range(2))
        problem = problems[number % 600].split()
        if number % 3 == 2:
            texts.append(f"{before} {after}")
        elif len(problem) >= 13:
            start = draw.randint(0, len(problem) - 13)
            texts.append(f"{before} {' '.join(problem[start : start + 13 + number % 9])} {after}")
        else:
            space = " " if len(problem) >= 8 else "\n"
            texts.append(f"{before}{space}{' '.join(problem).upper()}{space}{after}")
        truth.append(-1 if number % 3 == 2 else number % 600)
    return problems, texts, truth


def test_every_planted_problem_is_found_and_no_other() -> None:
    problems, texts, truth = planted()
    for text, problem, hits in zip(texts, truth, index(*problems).find(texts), strict=True):
        assert [hit["problem_id"] for hit in hits] == ([] if problem < 0 else [f"eval-{problem}"])
        for hit in hits:
            words = text.lower().split()[slice(*hit["words"])]
            assert hit["text"] == " ".join(words)
            assert hit["text"] in problems[problem].lower()


def test_numpy_finds_the_same_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    problems, texts, _ = planted()
    awkward = ["", "日本語\u3000テキスト " * 20, "\ud800 " * 20, "ß " * 20, LONG * 3, "x" * 100_000]
    problems, texts = [*problems, *awkward], [*texts, *awkward]
    fast = index(*problems).find(texts)
    monkeypatch.setitem(sys.modules, "numba", None)
    compiled.cache_clear()
    slow: list[list[dict[str, Any]]] = []
    one = index(*problems)
    for start in range(0, len(texts), 77):
        slow += one.find(texts[start : start + 77])
    monkeypatch.undo()
    compiled.cache_clear()
    assert slow == fast
    assert [hits[0]["problem_id"] for hits in fast[-6:]] == [f"eval-{600 + number}" for number in range(6)]
