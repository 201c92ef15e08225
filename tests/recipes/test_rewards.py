import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from desk import in_sessions, until
from pydantic import ValidationError

from data_prep.grading import ExactGrader, MathVerifyGrader
from data_prep.grading.pool import GradingPool
from recipes.rewards import RewardWeights, reward_functions, well_formed

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pool() -> Iterator[GradingPool]:
    with GradingPool(ExactGrader(), 2) as pool:
        yield pool


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think>\na\n</think>\n\\boxed{4}", True),
        ("a</think>\\boxed{4}", True),  # the template may have opened the thinking
        ("  \n<think></think> so \\boxed{\\frac{1}{2}}, that is all.", True),
        ("<think>\\boxed{3}</think>\\boxed{4}", True),
        ("<think>a</think>\\boxed{3} or \\boxed{4}", True),
        ("<think>a</think>\\boxed{4", False),
        ("<think>a</think>\\boxed{}", False),
        ("<think>a</think>\\boxed{ }", False),
        ("<think>a</think>4", False),
        ("<think>\\boxed{4}</think>", False),
        ("<think>\\boxed{4}", False),
        ("\\boxed{4}", False),
        ("hm <think>a</think>\\boxed{4}", False),
        ("<think>a<think>b</think>\\boxed{4}", False),
        ("<think>a</think>b</think>\\boxed{4}", False),
        ("<think>a</think>\\boxed{4}<think>b</think>", False),
        ("<think>a</think>\\boxed{4}</think>", False),
        ("", False),
    ],
)
def test_form(response: str, expected: bool) -> None:
    assert well_formed(response) is expected


def test_form_takes_long_texts() -> None:
    assert well_formed("<think>" + "\\boxed{ <" * 50_000 + "</think>\\boxed{1}")
    assert not well_formed("<think>a</think>" + "\\boxed{" * 20_000)


def test_accuracy_is_what_the_grader_says(pool: GradingPool) -> None:
    functions = reward_functions(pool, RewardWeights(accuracy=2.0, format=0.5))
    assert {name: weight for name, (_, weight) in functions.items()} == {"accuracy": 2.0, "format": 0.5}
    accuracy, form = functions["accuracy"][0], functions["format"][0]
    texts = ["<think>a</think>\\boxed{4}", "<think>a</think>\\boxed{5}", "<think>\\boxed{4}", "\\boxed{4}", "4", ""]
    conversations = [[{"role": "assistant", "content": text}] for text in texts]
    golds = ["4", "4", "4", "4", "4", " "]
    expected = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    assert accuracy(prompts=["x"] * 6, completions=conversations, answer=golds, trainer_state=None) == expected
    assert accuracy(completions=texts, answer=golds) == expected, "again, with plain texts"
    assert form(completions=conversations, answer=golds) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert accuracy.__name__ == "accuracy", "TRL names the metric after the function"
    assert form.__name__ == "format"


def test_a_math_grader_sees_equal_values() -> None:
    with GradingPool(MathVerifyGrader(), 1) as pool:
        accuracy, _ = reward_functions(pool, RewardWeights())["accuracy"]
        texts = ["</think>\\boxed{0.5}", "</think>\\boxed{\\frac{2}{4}}", "</think>\\boxed{x+1}", "</think>\\boxed{2}"]
        assert accuracy(completions=texts, answer=["1/2", "1/2", "1+x", "1/2"]) == [1.0, 1.0, 1.0, 0.0]


def test_a_weight_of_0_leaves_a_reward_out(pool: GradingPool) -> None:
    assert set(reward_functions(pool, RewardWeights())) == {"accuracy"}
    assert set(reward_functions(pool, RewardWeights(accuracy=0, format=1))) == {"format"}
    with pytest.raises(ValidationError, match="accuracy and format are both 0, so nothing is rewarded"):
        RewardWeights(accuracy=0)
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        RewardWeights(format=-1)


POOL = r"""
from data_prep.grading import MathVerifyGrader
from data_prep.grading.pool import GradingPool

tower = r"\boxed{%d^{9^{9^9}}}"
rows = [{"response": tower % n, "answer": r"\sqrt{2}"} for n in range(2, 66)]
with GradingPool(MathVerifyGrader(timeout_s=2), 2) as pool:
    list(pool.grade(rows))
"""


def test_a_killed_process_leaves_no_grading_worker_behind() -> None:
    process = subprocess.Popen([sys.executable, "-c", POOL], cwd=ROOT, start_new_session=True)
    until(lambda: len(in_sessions([process.pid])) == 3)
    process.kill()
    process.wait()
    until(lambda: not in_sessions([process.pid]))
    assert in_sessions([process.pid]) == []
