"""The code grader: a program that a model wrote, run against the tests of its problem in a sandbox.

`curate` and `evaluate` run it through `data_prep.grading.pool`; rows carry their tests in a column.
"""

import ast
import json
import re
import secrets
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from data_prep.grading.base import BaseGrader, Verdict
from data_prep.grading.extract import final_text
from data_prep.grading.sandbox import Ended, Sandbox, check, run

MAX_PROGRAM_CHARACTERS = 200_000
"""A longer program is no answer."""

_FENCE = re.compile(r"^[ \t]*(?P<mark>```+|~~~+)[ \t]*(?P<language>[\w+.-]*)[^\n]*\n(?P<code>.*?)^[ \t]*(?P=mark)[ \t]*$", re.DOTALL | re.MULTILINE)  # fmt: skip # noqa: E501
_PYTHON = ("", "python", "python3", "py")


class CodeGrader(BaseGrader):
    """Runs the last Python code block of the final text against tests; right where every test passes.

    Tests, as a list or as JSON text, each one of:

    - `{"stdin": "1 2\\n", "stdout": "3\\n"}`: the program reads and prints. Lines are compared without trailing
      spaces and empty last lines. Its exit status must be 0.
    - `{"function": "add", "arguments": [1, 2], "result": 3}`: a function of the program, or a method of its class
      `Solution`. The result is compared as JSON (a tuple is a list; 1 and 1.0 are equal, 1 and true are not).
    - `{"assert": "assert add(1, 2) == 3"}`: code that raises where the program is wrong.

    or `{"inputs": [...], "outputs": [...]}`, with `fn_name` for functions (the form of APPS and TACO).

    What is expected of `stdout` and `result` tests is never inside the sandbox, so a program cannot read or forge
    it. An `assert` test runs in the process of the program, as HumanEval and MBPP do: a program that ends early
    fails (a token must be said at the end), but one that redefines what `==` means there is not caught. Prefer the
    other forms.

    Verdicts: a program that crashes, prints too much or uses too much memory is wrong; one that does not compile
    or is missing is an unparseable answer; one that uses up its CPU or wall time is a timeout; tests that cannot be
    read are an unparseable gold.
    """

    type: Literal["code"] = "code"

    tests_column: str = "tests"
    """The column of a row with its tests; the `answer` is read as JSON where it is missing."""
    tolerance: float = Field(default=0.0, ge=0)
    """Numbers that are expected as decimals may differ by this much, absolute or relative; 0 asks for equality."""
    total_s: float = Field(default=300.0, gt=0)
    """Seconds for all tests of one program; what takes longer is a timeout."""
    sandbox: Sandbox = Sandbox()
    """What the program may use."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing beyond Python, on Linux."""
        return ()

    @property
    def silence_s(self) -> float:
        """All tests of one program, and some rest."""
        return self.total_s + self.sandbox.wall_s + 60.0

    @property
    def batch(self) -> int:
        """Programs run long: one at a time."""
        return 1

    def gold(self, row: Mapping[str, Any]) -> str:
        """The tests of a row as JSON."""
        tests = row.get(self.tests_column)
        if tests is None:
            return str(row["answer"])
        return tests if isinstance(tests, str) else json.dumps(tests, ensure_ascii=False, sort_keys=True)

    def extract(self, response: str) -> str | None:
        """The last code block of the final text that is Python or names no language."""
        text = final_text(response)
        blocks = [match for match in _FENCE.finditer(text or "") if match["language"].lower() in _PYTHON]
        return blocks[-1]["code"] if blocks else None

    def decide(self, gold: str, answer: str | None) -> Verdict | None:
        """Only what needs no program to run."""
        if _tests(gold) is None:
            return "unparseable_gold"
        if not (answer or "").strip() or len(answer or "") > MAX_PROGRAM_CHARACTERS:
            return "unparseable_answer"
        return None

    def judge(self, gold: str, answer: str) -> Verdict:
        """Run the tests, up to the first that fails. Raises RequestError where there is no sandbox."""
        tests = _tests(gold)
        if tests is None:
            return "unparseable_gold"
        if not _compiles(answer):
            return "unparseable_answer"
        deadline = time.monotonic() + self.total_s
        for test in tests.programs:
            verdict = self._program(answer, test)
            if verdict != "correct":
                return verdict
            if time.monotonic() > deadline:
                return "timeout"
        return self._functions(answer, tests) if tests.calls or tests.checks else "correct"

    def warm_up(self) -> None:
        """See that this machine has a sandbox."""
        check(self.sandbox)

    def _program(self, program: str, test: "_Program") -> Verdict:
        ended = run(self.sandbox, "main.py", {"main.py": program}, test.stdin)
        if ended.reason != "exit" or ended.code != 0:
            return _failure(ended)
        return "correct" if self._same_text(test.stdout, ended.stdout) else "wrong"

    def _functions(self, program: str, tests: "_Tests") -> Verdict:
        """All calls and checks, in one process."""
        token = secrets.token_hex(16)
        calls = [{"function": call.function, "arguments": call.arguments} for call in tests.calls]
        files = {"main.py": program, "driver.py": Path(__file__).with_name("sandbox_driver.py").read_text("utf-8")}
        stdin = json.dumps({"calls": calls, "checks": tests.checks, "token": token})
        ended = run(self.sandbox, "driver.py", files, stdin)
        if ended.reason != "exit" or ended.code != 0:
            return _failure(ended)
        *results, last = ended.stdout.splitlines() or [""]
        if last != token or len(results) != len(tests.calls):
            return "wrong"
        for call, line in zip(tests.calls, results, strict=True):
            try:
                result = json.loads(line)
            except (ValueError, RecursionError):
                return "wrong"
            if not self._same_value(call.result, result):
                return "wrong"
        return "correct"

    def _same_text(self, expected: str, found: str) -> bool:
        wanted, given = _lines(expected), _lines(found)
        if wanted == given:
            return True
        if not self.tolerance or len(wanted) != len(given):
            return False
        return all(self._same_line(one.split(), other.split()) for one, other in zip(wanted, given, strict=True))

    def _same_line(self, wanted: Sequence[str], given: Sequence[str]) -> bool:
        return len(wanted) == len(given) and all(
            one == other or ("." in one and self._near(_number(one), _number(other)))
            for one, other in zip(wanted, given, strict=True)
        )

    def _same_value(self, wanted: Any, given: Any) -> bool:
        if isinstance(wanted, bool) or isinstance(given, bool):
            return wanted is given
        if isinstance(wanted, list) and isinstance(given, list):
            return len(wanted) == len(given) and all(map(self._same_value, wanted, given))
        if isinstance(wanted, dict) and isinstance(given, dict):
            return wanted.keys() == given.keys() and all(self._same_value(wanted[key], given[key]) for key in wanted)
        if isinstance(wanted, float) and isinstance(given, int | float):
            return wanted == given or self._near(wanted, float(given))
        return bool(wanted == given)

    def _near(self, wanted: float | None, given: float | None) -> bool:
        if wanted is None or given is None:
            return False
        return abs(wanted - given) <= self.tolerance * max(1.0, abs(wanted))


@dataclass(frozen=True)
class _Program:
    stdin: str
    stdout: str


@dataclass(frozen=True)
class _Call:
    function: str
    arguments: list[Any]
    result: Any


@dataclass(frozen=True)
class _Tests:
    programs: list[_Program]
    calls: list[_Call]
    checks: list[str]


@lru_cache(maxsize=256)
def _tests(gold: str) -> _Tests | None:
    """The tests of a problem; None where they cannot be read, and where there is none."""
    try:
        found = json.loads(gold)
    except (ValueError, RecursionError):
        return None
    cases = _from_columns(found) if isinstance(found, dict) and "inputs" in found else found
    tests = _Tests([], [], [])
    if not isinstance(cases, list) or not cases:
        return None
    for case in cases:
        if not isinstance(case, dict) or not _add(tests, case):
            return None
    return tests


def _add(tests: _Tests, case: Mapping[str, Any]) -> bool:
    keys = set(case)
    if keys == {"stdin", "stdout"} and isinstance(case["stdin"], str) and isinstance(case["stdout"], str):
        tests.programs.append(_Program(case["stdin"], case["stdout"]))
    elif keys == {"function", "arguments", "result"} and isinstance(case["arguments"], list):
        tests.calls.append(_Call(str(case["function"]), case["arguments"], case["result"]))
    elif keys == {"assert"} and isinstance(case["assert"], str):
        tests.checks.append(case["assert"])
    else:
        return False
    return True


def _from_columns(found: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Cases of the form of APPS; there an output is often a list of one result, or of lines."""
    inputs, outputs, name = found["inputs"], found.get("outputs"), found.get("fn_name")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        return None
    pairs = list(zip(inputs, outputs, strict=True))
    if name:
        return [
            {"function": name, "arguments": given, "result": out[0] if isinstance(out, list) and len(out) == 1 else out}
            for given, out in pairs
        ]
    return [{"stdin": _text(given), "stdout": _text(out)} for given, out in pairs]


def _text(value: Any) -> Any:
    return "\n".join(map(str, value)) + "\n" if isinstance(value, list) else value


def _failure(ended: Ended) -> Verdict:
    return "timeout" if ended.reason in ("cpu", "wall") else "wrong"


def _compiles(program: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
