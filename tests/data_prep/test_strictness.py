import pytest

from data_prep.grading import MathVerifyGrader

GRADER = MathVerifyGrader()

# The table in data_prep.grading.strictness, row by row: rule, right answer, response, our verdict.
ROWS = [
    ("final box", "4", r"<think>\boxed{4}</think>So \boxed{5}", "wrong"),
    ("final box", "4", r"<think>\boxed{4}</think>So 4", "unparseable_answer"),
    ("worked out", "42", r"\boxed{17+25}", "wrong"),
    ("worked out", "42", r"\boxed{84/2}", "wrong"),
    ("worked out", "42", r"\boxed{\sqrt{1764}}", "wrong"),
    ("worked out", "1000", r"\boxed{10^3}", "wrong"),
    ("worked out", "42", r"\boxed{42,42}", "wrong"),
    ("worked out", "42", r"\boxed{-(-42)}", "wrong"),
    ("worked out", "42", r"\boxed{42 \pm 0}", "wrong"),
    ("worked out", "42", r"\boxed{|42|}", "wrong"),
    ("worked out", "(1,2)", r"\boxed{(1,1+1)}", "wrong"),
    ("equation", "42", r"\boxed{43=42}", "wrong"),
    ("equation", r"\sqrt2", r"\boxed{43=\sqrt2}", "wrong"),
    ("ratio", "3/4", r"\boxed{3:4}", "wrong"),
    ("base", "11", r"\boxed{11_2}", "wrong"),
    ("unit", "10 cm", r"\boxed{10 m}", "wrong"),
    ("unit", r"\sqrt2 \text{ cm}", r"\boxed{\sqrt2 \text{ m}}", "wrong"),
    ("zero", "0.0000001", r"\boxed{0.0000002}", "wrong"),
    ("scale word", "5000000", r"\boxed{5 \text{ million}}", "correct"),
    ("scale word", "5", r"\boxed{5 \text{ million}}", "wrong"),
    ("thousands", "1234.5", r"\boxed{1\,234.50}", "correct"),
    ("interval", "(0,1)", r"\boxed{0<x<1}", "correct"),
    ("same text", r"\text{a b c!}", r"\boxed{a b c!}", "correct"),
    ("same text", "1234", r"\boxed{1\,234}", "correct"),
]


@pytest.mark.parametrize(("rule", "right", "response", "verdict"), ROWS)
def test_a_rule_decides_differently_than_math_verify_and_is_named(
    rule: str, right: str, response: str, verdict: str
) -> None:
    from math_verify import parse, verify

    assert GRADER.grade(response, right).verdict == verdict
    theirs = verify(parse(f"\\boxed{{{right}}}"), parse(response))
    if (rule, verdict) != ("final box", "wrong"):
        assert theirs is not (verdict == "correct"), "math-verify has changed: the rule is not needed any more"
        assert GRADER.explain(response, right, GRADER.grade(response, right).verdict) == rule


# What looks alike and stays right.
@pytest.mark.parametrize(
    ("right", "answer"),
    [
        ("5", "x=5"), ("42", "42.0"), ("10 cm", "10"),
        ("3:4", "3/4"), ("50", r"50\%"), ("0.5", r"50\%"), ("(1,2)", r"\left(1, 2\right)"), ("1,2", "2,1"),
        (r"\{1,2\}", r"\{2,1\}"), ("(1,2)", "x=1, y=2"), (r"\sqrt2 \text{ cm}", r"\sqrt2"), ("-3", "- 3"),
        (r"\sqrt2 + 1", r"1+\sqrt{2}"), ("x+1, x-1", "x-1, x+1"), ("[0,1)", r"0 \le x < 1"), ("1234", "1,234"),
    ],
)  # fmt: skip
def test_what_stays_right(right: str, answer: str) -> None:
    assert GRADER.grade(f"\\boxed{{{answer}}}", right).verdict == "correct"


def test_an_undisputed_verdict_has_no_rule() -> None:
    assert GRADER.explain(r"\boxed{43}", "42", "wrong") is None
    assert GRADER.explain(r"\boxed{(1,3)}", "(1,2)", "wrong") is None
    assert GRADER.explain(r"\boxed{x+2}", "x+1", "wrong") is None
