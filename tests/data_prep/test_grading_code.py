import json

import pytest

from data_prep.grading import CodeGrader, grade_rows
from data_prep.grading.sandbox import Sandbox
from data_prep.grading.voting import agreements
from reasonforge.errors import RequestError

pytestmark = pytest.mark.xdist_group("sandbox")

GRADER = CodeGrader(sandbox=Sandbox(cpu_s=2, wall_s=20.0))

STDIN = [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "5 -7", "stdout": "-2"}]
CALLS = [{"function": "add", "arguments": [1, 2], "result": 3}, {"function": "add", "arguments": [[1], [2]], "result": [1, 2]}]  # fmt: skip # noqa: E501
CHECKS = [{"assert": "assert add(1, 2) == 3"}, {"assert": "for i in range(9):\n    assert add(i, i) == 2 * i"}]

READS = "a, b = map(int, input().split())\nprint(a + b)"
ADDS = "def add(a, b):\n    return a + b"


@pytest.fixture(autouse=True)
def _needs_a_sandbox() -> None:
    try:
        GRADER.warm_up()
    except RequestError as error:
        pytest.skip(str(error))


def verdict(program: str, tests: object, grader: CodeGrader = GRADER) -> str:
    response = f"<think>\n```python\nraise SystemExit\n```\n</think>\nHere:\n```python\n{program}\n```\nDone."
    return grader.grade(response, grader.gold({"answer": "-", "tests": tests})).verdict


@pytest.mark.parametrize(
    ("program", "tests", "expected"),
    [
        (READS, STDIN, "correct"),
        (READS + "\nprint()", STDIN, "correct"),  # empty last lines do not count
        (READS.replace("+", "-"), STDIN, "wrong"),
        (READS + "\n1/0", STDIN, "wrong"),
        ("while True: pass", STDIN, "timeout"),
        (ADDS, CALLS, "correct"),
        ("class Solution:\n    def add(self, a, b):\n        return a + b", CALLS, "correct"),
        (ADDS + "\nprint('hello')", CALLS, "correct"),  # what it prints is no result
        ("def add(a, b):\n    return float(a + b) if a == 1 else a + b", CALLS, "correct"),
        ("def add(a, b):\n    return True if a == 1 else [1, 2]", [CALLS[0] | {"result": 1}], "wrong"),
        ("def plus(a, b):\n    return a + b", CALLS, "wrong"),
        ("def add(a, b):\n    return object()", CALLS, "wrong"),
        (ADDS, CHECKS, "correct"),
        (ADDS.replace("+", "-"), CHECKS, "wrong"),
        (ADDS, STDIN + CALLS, "wrong"),
        ("def add(a, b):\n    return (a, b)", [{"function": "add", "arguments": [1, 2], "result": [1, 2]}], "correct"),
        ("def add(:", CHECKS, "unparseable_answer"),
        ("x = '\0'", CHECKS, "unparseable_answer"),
        ("", CHECKS, "unparseable_answer"),
        (ADDS, [], "unparseable_gold"),
        (ADDS, [{"stdin": "1"}], "unparseable_gold"),
        (ADDS, "not json", "unparseable_gold"),
        (READS, {"inputs": ["1 2\n", "5 -7\n"], "outputs": ["3\n", "-2\n"]}, "correct"),
        (ADDS, {"inputs": [[1, 2]], "outputs": [[3]], "fn_name": "add"}, "correct"),
        (READS, {"inputs": ["1 2"], "outputs": []}, "unparseable_gold"),
    ],
)
def test_code(program: str, tests: object, expected: str) -> None:
    assert verdict(program, tests) == expected


@pytest.mark.parametrize("early", ["import os\nos._exit(0)", "raise SystemExit", "import sys; sys.exit(0)"])
@pytest.mark.parametrize("tests", [CALLS, CHECKS])
def test_a_program_that_ends_early_is_wrong(early: str, tests: object) -> None:
    assert verdict(early, tests) == "wrong"


def test_what_is_expected_is_not_in_the_sandbox() -> None:
    secret = "print(open('main.py').read(), __import__('os').listdir('.'), __import__('os').environ, input())"
    assert verdict(secret, [{"stdin": "x", "stdout": "4242"}]) == "wrong"
    forger = "import gc\ndef add(a, b):\n    return next(o for o in gc.get_objects() if isinstance(o, dict) and 'result' in o)['result']"  # noqa: E501
    assert verdict(forger, [{"function": "add", "arguments": [1, 2], "result": 4242}]) == "wrong"


def test_decimals_may_differ_by_the_tolerance() -> None:
    near = GRADER.model_copy(update={"tolerance": 1e-6})
    tests = [{"stdin": "", "stdout": "0.333333 x\n"}]
    assert verdict("print(1/3, 'x')", tests) == "wrong"
    assert verdict("print(1/3, 'x')", tests, near) == "correct"
    assert verdict("print(0.3334, 'x')", tests, near) == "wrong"
    call = [{"function": "f", "arguments": [], "result": [0.1]}]
    assert verdict("def f():\n    return [0.1 + 1e-9]", call) == "wrong"
    assert verdict("def f():\n    return [0.1 + 1e-9]", call, near) == "correct"


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\na\n```\nthen\n```py\nb\n```", "b\n"),
        ("```\na\n```", "a\n"),
        ("```python\na\n```\nprints\n```text\n3\n```", "a\n"),
        ("~~~python\na\n~~~", "a\n"),
        ("<think>```python\na\n```", None),
        ("no code", None),
        ("```python\nnever closed", None),
    ],
)
def test_the_last_python_block_is_the_answer(response: str, program: str | None) -> None:
    assert GRADER.extract(response) == program


def test_rows_carry_their_tests_through_the_pool() -> None:
    programs = [READS, "while True: pass", READS.replace("+", "-"), "def x(:"]
    rows = [{"response": f"```python\n{text}\n```", "answer": json.dumps(STDIN)} for text in programs]
    verdicts = [row["verdict"] for row in grade_rows(rows, GRADER, 2)]
    assert verdicts == ["correct", "timeout", "wrong", "unparseable_answer"]


def test_two_programs_are_alike_only_as_text() -> None:
    pairs = [({}, "a = 1\n", "a = 1"), ({}, "a = 1", "a = 2")]
    assert list(agreements(pairs, GRADER, 1)) == [True, False]
