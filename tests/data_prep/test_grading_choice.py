import pytest

from data_prep.grading import ChoiceGrader, grade_rows

GRADER = ChoiceGrader()
CITIES = ["Rome", "Paris", "New York", "5 \\text{ cm}"]


def verdict(response: str, answer: str = "B", options: object = CITIES) -> str:
    row = {"answer": answer, "options": options}
    return GRADER.grade(response, GRADER.gold({key: value for key, value in row.items() if value is not None})).verdict


@pytest.mark.parametrize(
    "response",
    [
        r"\boxed{B}", r"\boxed{(B)}", r"\boxed{b}", r"\boxed{\text{B}}", r"\boxed{B.}", r"\boxed{[B]}",
        r"\boxed{Paris}", r"\boxed{\text{paris}}", r"\boxed{B) Paris}", r"\boxed{(B) Paris.}", r"\boxed{B: Paris}",
        "The answer is B.", "So the answer is (B).", "Answer: B", "**Answer:** B", "The correct option is **B**",
        "the final answer is $\\text{B}$", "First A.\nB", "(B)", "I first said the answer is A. The answer is B.",
        "<think>The answer is A.</think>The answer is B.",
    ],
)  # fmt: skip
def test_the_right_option(response: str) -> None:
    assert verdict(response) == "correct"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"\boxed{A}", "wrong"),
        (r"\boxed{Rome}", "wrong"),
        (r"\boxed{B) Rome}", "wrong"),  # letter and text disagree
        (r"\boxed{E}", "wrong"),
        (r"\boxed{A or B}", "wrong"),
        (r"\boxed{AB}", "wrong"),
        (r"\boxed{London}", "wrong"),
        ("The answer is a good question.", "unparseable_answer"),
        ("Bananas are yellow", "unparseable_answer"),
        ("<think>The answer is B.", "unparseable_answer"),
        ("<think>B</think>", "unparseable_answer"),
        ("", "unparseable_answer"),
    ],
)
def test_other_answers(response: str, expected: str) -> None:
    assert verdict(response) == expected


@pytest.mark.parametrize(
    "options",
    [
        CITIES,
        {"A": "Rome", "B": "Paris"},
        {"label": ["A", "B"], "text": ["Rome", "Paris"]},
        {"label": ["1", "2"], "text": ["Rome", "Paris"]},
        ["A. Rome", "B. Paris"],
    ],
)
@pytest.mark.parametrize("answer", ["B", "Paris", "(B)"])
def test_forms_of_options_and_of_the_right_answer(options: object, answer: str) -> None:
    assert verdict(r"\boxed{B}", answer, options) == verdict(r"\boxed{Paris}", answer, options) == "correct"
    assert verdict(r"\boxed{A}", answer, options) == verdict(r"\boxed{Rome}", answer, options) == "wrong"


@pytest.mark.parametrize(
    ("answer", "options"), [("E", CITIES), ("London", CITIES), ("B", 3), ("B", []), ("", CITIES), ("Paris", None)]
)
def test_a_right_answer_that_is_no_option(answer: str, options: object) -> None:
    assert verdict(r"\boxed{B}", answer, options) == "unparseable_gold"


def test_without_options_only_letters_are_read() -> None:
    assert verdict("The answer is B.", "B", None) == "correct"
    assert verdict(r"\boxed{Paris}", "B", None) == "unparseable_answer"


def test_two_options_of_one_text_are_not_told_apart_by_it() -> None:
    assert verdict(r"\boxed{x}", "A", ["x", "x"]) == "wrong"
    assert verdict(r"\boxed{A}", "A", ["x", "x"]) == "correct"


def test_options_come_from_the_row_in_the_pool() -> None:
    rows = [{"response": r"\boxed{Paris}", "answer": letter, "options": CITIES} for letter in "AB"]
    assert [row["verdict"] for row in grade_rows(rows, GRADER, 1)] == ["wrong", "correct"]
