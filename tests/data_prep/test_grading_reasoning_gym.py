import importlib.util
import sys

import pytest

from data_prep.grading import ReasoningGymGrader
from reasonforge.errors import RequestError

GRADER = ReasoningGymGrader()
INSTALLED = importlib.util.find_spec("reasoning_gym") is not None


@pytest.mark.skipif(not INSTALLED, reason="reasoning-gym is not installed")
@pytest.mark.parametrize("name", ["chain_sum", "leg_counting", "spell_backward"])
def test_its_own_entries(name: str) -> None:
    import reasoning_gym

    for entry in reasoning_gym.create_dataset(name, size=3, seed=1):
        row = {"prompt": entry["question"], "answer": entry["answer"], "metadata": entry["metadata"]}
        gold = GRADER.gold(row)
        assert GRADER.grade(f"<think>\n</think><answer>{entry['answer']}</answer>", gold).verdict == "correct"
        assert GRADER.grade(f"\\boxed{{{entry['answer']}}}", gold).verdict == "correct"
        assert GRADER.grade("<answer>-12345</answer>", gold).verdict == "wrong"


@pytest.mark.skipif(not INSTALLED, reason="reasoning-gym is not installed")
def test_an_unknown_dataset_is_no_gold() -> None:
    assert (
        GRADER.grade("<answer>1</answer>", GRADER.gold({"answer": "1", "dataset": "nope"})).verdict
        == "unparseable_gold"
    )


def test_what_needs_no_scorer() -> None:
    assert GRADER.decide(GRADER.gold({"answer": "1"}), "1") == "unparseable_gold"
    assert GRADER.decide("plain", "1") == "unparseable_gold"
    gold = GRADER.gold({"answer": "1", "dataset": "chain_sum"})
    assert GRADER.decide(gold, None) == "unparseable_answer"
    assert GRADER.extract("<think><answer>1</answer></think><answer> 2 </answer>") == "2"
    assert GRADER.extract("<think><answer>1</answer></think>") is None


def test_a_missing_package_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(RequestError, match="pip install reasoning-gym") as error:
        GRADER.warm_up()
    assert "\n" not in str(error.value)
