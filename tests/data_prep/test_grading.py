import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from data_prep.grading import BaseGrader, ExactGrader, Grader, GradingPool, MathVerifyGrader, grade_rows
from data_prep.grading.literals import literal, normalise
from data_prep.grading.voting import agreements
from reasonforge.errors import StageError

MATH = MathVerifyGrader()
TOWER = r"\boxed{9^{9^{9}}}"  # against \sqrt{2}: more digits than memory holds


def boxed(answer: str) -> str:
    return f"<think>\nhm\n</think>\nThe answer is \\boxed{{{answer}}}."


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("42", "42", "correct"),
        (" 42. ", "$42$", "correct"),
        ("a  b", "a\nb", "correct"),
        ("42", "42.0", "wrong"),
        ("A", "a", "wrong"),
        ("42", " ", "unparseable_answer"),
        (" $ $ ", "42", "unparseable_gold"),
    ],
)
def test_exact(gold: str, answer: str, verdict: str) -> None:
    assert ExactGrader().grade(boxed(answer), gold).verdict == verdict


@pytest.mark.parametrize("grader", [ExactGrader(), MATH])
def test_only_a_box_after_the_thinking_is_an_answer(grader: Grader) -> None:
    inside = grader.grade("<think>\n\\boxed{4}\n</think>\nThe answer is 4.", "4")
    assert (inside.verdict, inside.extracted) == ("unparseable_answer", None)
    assert grader.grade("<think>\\boxed{4}</think>\\boxed{5}", "4").verdict == "wrong"
    assert grader.grade("<think>\\boxed{4}</think>\\boxed{5}", "5").verdict == "correct"
    assert grader.grade("<think>\\boxed{4}", "4").verdict == "unparseable_answer"
    assert grader.grade("a template opened it</think>\\boxed{4}", "4").verdict == "correct"
    assert grader.grade("\\boxed{4}", "4").verdict == "correct"


# Gold, answer, verdict. The first block is all that shared experience lists as wrong in math-verify.
CASES = [
    ("42", "17+25", "wrong"),
    ("42", "43=42", "wrong"),
    ("10 cm", "10 m", "wrong"),
    (r"10 \text{ cm}", r"10 \mathrm{m}", "wrong"),
    ("11", "11_2", "wrong"),
    ("11_2", "11_{3}", "wrong"),
    ("3/4", "3:4", "wrong"),
    ("5", "x=5", "correct"),  # an assignment is a worked-out answer: no hack
    ("1/3", "0.333", "wrong"),  # rounded too early
    ("0<x<1", "(0,1)", "correct"),
    ("(0,1)", "0<x<1", "correct"),
    (r"\pi/2", r"90^\circ", "wrong"),
    (r"\sqrt{-1}", "i", "wrong"),
    ("The answer is B.", "B", "wrong"),
    # Numbers that were worked out.
    ("42", "042", "correct"),
    ("42", "42.0", "correct"),
    ("42", r"42 \text{ cm}^2", "correct"),
    ("42", r"\mathbf{42}.", "correct"),
    ("42", r"\{42\}", "correct"),
    ("42", r"\boxed{42}", "correct"),
    (r"\boxed{42}", "42", "correct"),
    ("10 cm", "10", "correct"),
    ("10 cm", r"10\text{ centimeters}", "correct"),
    ("90", r"90^\circ", "correct"),
    ("5", r"\$5", "correct"),
    ("5000000", r"5 \text{ million}", "correct"),
    ("5", r"5 \text{ million}", "wrong"),
    ("1234", "1,234", "correct"),
    ("1234", r"1\,234", "correct"),
    ("1234", "1{,}234", "correct"),
    ("-3", "- 3", "correct"),
    ("0.5", r"\frac{1}{2}", "correct"),
    ("1/2", r"\dfrac12", "correct"),
    ("1/2", r"\frac{2}{4}", "correct"),
    ("-1/2", r"\frac{-1}{2}", "correct"),
    ("7/2", r"3\frac{1}{2}", "correct"),
    ("1000", r"1\times 10^{3}", "correct"),
    ("1/3", "0.333333", "correct"),
    ("0.5", r"50\%", "correct"),
    ("50", r"50\%", "correct"),
    ("x=5", "5", "correct"),
    # Numbers that were not, or are others.
    ("42", "84/2", "wrong"),
    ("42", r"\sqrt{1764}", "wrong"),
    ("120", "5!", "wrong"),
    ("1024", "2^{10}", "wrong"),
    ("46", "12 34", "wrong"),
    ("6", "6,7", "wrong"),
    ("6", "6i", "wrong"),
    ("42", "x=3+39=42", "wrong"),
    ("x=5", "y=5", "wrong"),
    ("x=5", "x=17-12", "wrong"),
    ("0.0000001", "0.0000002", "wrong"),
    ("42", r"\text{forty two}", "wrong"),
    # Expressions.
    (r"\sqrt2", r"x=\sqrt{2}", "correct"),
    (r"\sqrt2", r"43=\sqrt2", "wrong"),
    (r"\sqrt2", r"x=43=\sqrt2", "wrong"),
    (r"x^2-1", r"(x-1)(x+1)", "correct"),
    ("2x+1", "f(x)=2x+1", "correct"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt2}{2}", "correct"),
    ("11_2", "11", "correct"),
    ("3:4", "3/4", "correct"),
    ("1,2", "2,1", "correct"),
    ("(1,2)", "(2,1)", "wrong"),
    ("B", r"\text{B}", "correct"),
    ("B", "(B)", "correct"),
    (r"\text{Tuesday}", r"\text{tuesday}", "correct"),
    # What cannot be read.
    ("", "42", "unparseable_gold"),
    (r"\approx", "42", "unparseable_gold"),
    ("42", "", "unparseable_answer"),
    ("42", r"\approx", "unparseable_answer"),
    ("42", "4" * 2000, "unparseable_answer"),
]


@pytest.mark.parametrize(("gold", "answer", "verdict"), CASES)
def test_math(gold: str, answer: str, verdict: str) -> None:
    assert MATH.grade(boxed(answer), gold).verdict == verdict


# Spellings of one number, each of which the fast path reads.
DIGITS = st.integers(-(10**6), 10**6)
NUMBERS = (
    DIGITS.map(str)
    | DIGITS.map("{:,}".format)
    | st.builds("{}.{:03d}".format, st.integers(-999, 999), st.integers(0, 999))
    | st.builds("{}/{}".format, st.integers(0, 40), st.integers(1, 40))
    | st.builds(r"\frac{{{}}}{{{}}}".format, st.integers(-40, 40), st.integers(1, 40))
    | st.builds(r"-\dfrac{{{}}}{{{}}}".format, st.integers(0, 40), st.integers(1, 40))
)


def same_value(number: str) -> st.SearchStrategy[str]:
    found = literal(normalise(number))
    assert found is not None
    value = found.value
    return st.sampled_from(
        [f"{float(value):.6f}", f"{float(value):.9f}", rf"\frac{{{value.numerator}}}{{{value.denominator}}}", number]
    )


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_the_fast_path_agrees_with_math_verify(data: st.DataObject) -> None:
    from math_verify import LatexExtractionConfig, parse, verify

    gold = data.draw(NUMBERS)
    answer = data.draw(NUMBERS | same_value(gold))
    verdict = MATH.decide(gold, answer)
    right, given_ = literal(normalise(gold)), literal(normalise(answer))
    assert right is not None
    assert given_ is not None
    if verdict is None or (right.form == "integer" and given_.form == "fraction"):
        return  # left to math-verify, or stricter on purpose
    trees = [parse(f"\\boxed{{{text}}}", [LatexExtractionConfig()], "no_fallback") for text in (gold, answer)]
    assert (verdict == "correct") == verify(*trees), (gold, answer)


@given(st.fractions(max_denominator=999), st.sampled_from(["", " ", r"\left(", "$"]))
def test_fractions_are_read_exactly(value: Fraction, around: str) -> None:
    text = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    text = f"${text}$" if around == "$" else f" {text}. "
    found = literal(normalise(text))
    assert found is not None
    assert found.value == value


@pytest.mark.parametrize("text", ["17+25", "11_2", "3:4", "12 34", "6i", "1/0", "x", "2^{10}", "42=42", "5!", "1/2/3"])
def test_expressions_are_no_literals(text: str) -> None:
    assert literal(normalise(text)) is None


def agree(pairs: list[tuple[str, str]], grader: BaseGrader = MATH) -> list[bool]:
    return list(agreements((({}, *pair) for pair in pairs), grader, 1))


def test_equivalence_is_symmetric() -> None:
    texts = ["42", "42.0", "17+25", "x=42", "1/2", "0.5", r"50\%", "(0,1)", "0<x<1", "B", r"\approx"]
    pairs = list(product(texts, texts))
    found = dict(zip(pairs, agree(pairs), strict=True))
    for a, b in pairs:
        assert found[a, b] == found[b, a]
    for text in texts:
        assert found[text, text] or text == "17+25" or literal(normalise(text)) is None


def test_equivalence() -> None:
    pairs = [(r"\frac{1}{2}", "0.5"), ("(0,1)", "0<x<1"), ("42", "17+25"), ("42", "43")]
    assert agree(pairs) == [True, True, False, False]
    assert agree([(" $42$", "42.")], ExactGrader()) == [True]


def test_grading_works_in_a_thread() -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(MATH.grade(boxed("(x-1)(x+1)"), "x^2-1").verdict))
    thread.start()
    thread.join()
    assert found == ["correct"]


def test_a_slow_answer_is_a_timeout_in_this_process() -> None:
    assert MathVerifyGrader(timeout_s=0.5).grade(TOWER, r"\sqrt{2}").verdict == "timeout"


def rows_for_pool() -> list[dict[str, str]]:
    pairs = [(gold, answer) for gold, answer, _ in CASES]
    rows = [{"id": f"{index}", "response": boxed(a), "answer": g} for index, (g, a) in enumerate(pairs * 2)]
    slow = {"id": "tower", "response": TOWER, "answer": r"\sqrt{2}"}
    return [*rows[:3], slow, *rows[3:], {**slow, "id": "tower-2"}, {**slow, "answer": "2", "id": "fast"}]


def test_only_the_guilty_row_times_out() -> None:
    rows = rows_for_pool()
    grader = MathVerifyGrader(timeout_s=1)
    one, three = (list(grade_rows(iter(rows), grader, workers)) for workers in (1, 3))
    assert one == three
    assert [row["id"] for row in one] == [row["id"] for row in rows]
    verdicts = {row["id"]: row["verdict"] for row in one}
    assert (verdicts["tower"], verdicts["tower-2"], verdicts["fast"]) == ("timeout", "timeout", "wrong")
    expected = Counter(verdict for _, _, verdict in CASES * 2)
    expected.update({"timeout": 2, "wrong": 1})
    assert Counter(row["verdict"] for row in one) == expected
    assert list(one[0]) == ["id", "response", "answer", "verdict", "extracted"]


def test_rows_stream_through_the_pool() -> None:
    taken = 0

    def endless() -> Iterator[dict[str, str]]:
        nonlocal taken
        while True:
            taken += 1
            yield {"response": boxed(f"(x-{taken % 50})^2"), "answer": "x^2"}

    rows = grade_rows(endless(), MATH, 2)
    assert [next(rows)["verdict"] for _ in range(600)].count("correct") == 12
    rows.close()
    assert taken < 600 + 600


def test_plain_rows_need_no_worker() -> None:
    with GradingPool(MATH, 2) as pool:
        rows = [{"response": boxed(str(n)), "answer": "4"} for n in range(10)]
        assert [row["verdict"] for row in pool.grade(rows)].index("correct") == 4
        assert not pool._workers


def test_what_cannot_be_compared_in_time_is_not_the_same() -> None:
    pairs = [(r"\sqrt{2}", "9^{9^{9}}"), ("x+1", "1+x")]
    assert agree(pairs, MathVerifyGrader(timeout_s=1)) == [False, True]


def test_a_worker_that_cannot_start_is_no_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StageError, match="failed while starting"):
        list(grade_rows([{"response": boxed("x+1"), "answer": "1+x"}], MATH, 1))


def test_the_union_reads_both_graders() -> None:
    adapter = TypeAdapter(Grader)
    assert adapter.validate_python({"type": "exact"}) == ExactGrader()
    assert adapter.validate_python({"type": "math_verify", "timeout_s": 2.0}).limit_s == 2.0


def test_importing_the_graders_is_light() -> None:
    heavy = "math_verify|sympy|torch|numpy|transformers|pyarrow|jinja2"
    code = (
        "import sys, data_prep.grading, data_prep.curation.curate, data_prep.tokenization.dataset\n"
        "import recipes.stages.curate\n"
        f"sys.exit(', '.join(m for m in '{heavy}'.split('|') if m in sys.modules) or 0)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
