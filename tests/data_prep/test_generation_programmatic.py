import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.generation import ProgrammaticTeacher, Sampling
from data_prep.sources.problems import RunningSumSource
from data_prep.sources.running_sum import RunningSum, draw
from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl
from reasonforge.progress import Progress

MakeProgress = Callable[[str, int, str], Progress]


def wrong_lines(response: str) -> int:
    """Lines of the thinking whose own arithmetic is off."""
    thinking = response.split("<think>\n")[1].split("</think>")[0]
    parts = [line.split(":")[1].split("=") for line in thinking.splitlines()]
    return sum(eval(left) != int(right) for left, right in parts)  # noqa: S307 - text that the teacher wrote


def boxed(response: str) -> int:
    return int(response.rsplit(r"\boxed{", 1)[1].rstrip("}"))


def test_a_careful_teacher_writes_the_trace_of_the_notes() -> None:
    teacher = ProgrammaticTeacher(hasty_rate=0, wrong_rate=0)
    assert teacher.respond(RunningSum(9, (3, 6, -8)), Random(0)) == (
        "<think>\na+3:9+3=12\nb+6:12+6=18\nc-8:18-8=10\n</think>\n\\boxed{10}"
    )


def test_a_hasty_teacher_stops_at_once_and_is_right() -> None:
    teacher = ProgrammaticTeacher(hasty_rate=1, wrong_rate=0)
    assert teacher.respond(RunningSum(9, (3, 6, -8)), Random(0)) == "<think>\n</think>\n\\boxed{10}"


@given(st.integers(), st.floats(0, 1))
def test_a_wrong_trace_has_one_slip_that_carries_through(seed: int, hasty_rate: float) -> None:
    problem = draw(Random(seed), 1, 6)
    response = ProgrammaticTeacher(hasty_rate=hasty_rate, wrong_rate=1).respond(problem, Random(seed))
    assert boxed(response) != problem.answer
    assert boxed(response) >= 0
    assert wrong_lines(response) == (0 if "=" not in response else 1)


@given(st.integers(), st.floats(0, 1))
def test_a_trace_without_a_slip_is_right(seed: int, hasty_rate: float) -> None:
    problem = draw(Random(seed), 1, 6)
    response = ProgrammaticTeacher(hasty_rate=hasty_rate, wrong_rate=0).respond(problem, Random(seed))
    assert boxed(response) == problem.answer
    assert wrong_lines(response) == 0


def test_rates_are_what_they_say(tmp_path: Path, progress: MakeProgress) -> None:
    problems = RunningSumSource(train=2000, eval=1, min_terms=3, max_terms=3).make(0).train
    teacher = ProgrammaticTeacher(hasty_rate=0.15, wrong_rate=0.05)
    teacher.generate(
        problems,
        Sampling(samples=4),
        destination=tmp_path / "traces.jsonl",
        scratch=tmp_path / "scratch",
        seed=0,
        progress=progress,
    )
    rows = list(read_jsonl(tmp_path / "traces.jsonl"))
    lines = Counter(row["response"].count("=") for row in rows)
    assert lines[3] / len(rows) == pytest.approx(0.85**3, abs=0.02)
    assert lines[0] / len(rows) == pytest.approx(0.15, abs=0.02)
    wrong = sum(boxed(row["response"]) != int(row["answer"]) for row in rows)
    assert wrong / len(rows) == pytest.approx(0.05, abs=0.01)


def test_rows_keep_columns_and_do_not_depend_on_order(tmp_path: Path, progress: MakeProgress) -> None:
    problems = [{**row, "level": n} for n, row in enumerate(RunningSumSource(train=5, eval=1).make(0).train)]
    responses = []
    for name, given_problems in (("a", problems), ("b", problems[::-1])):
        counts = ProgrammaticTeacher(hasty_rate=0.5).generate(
            given_problems,
            Sampling(samples=3),
            destination=tmp_path / f"{name}.jsonl",
            scratch=tmp_path / name,
            seed=7,
            progress=progress,
        )
        assert counts == {"problems": 5, "samples": 15, "finished_stop": 15}
        rows = list(read_jsonl(tmp_path / f"{name}.jsonl"))
        assert [row["id"] for row in rows] == [f"{p['id']}/{sample}" for p in given_problems for sample in range(3)]
        responses.append({row["id"]: row["response"] for row in rows})
    assert responses[0] == responses[1]
    assert list(rows[0]) == [
        *("id", "problem_id", "sample", "prompt", "answer", "response", "finish_reason"),
        *("prompt_tokens", "completion_tokens", "teacher", "level"),
    ]
    assert rows[0]["prompt_tokens"] is None
    assert rows[0]["teacher"] == "programmatic"


@pytest.mark.parametrize("workers", [1, 2])
def test_another_prompt_is_refused_by_its_id(tmp_path: Path, progress: MakeProgress, workers: int) -> None:
    problems = RunningSumSource(train=1100, eval=1).make(0).train
    problems[600] = {"id": "odd", "prompt": "What is 1 + 1?", "answer": "2"}
    with pytest.raises(RequestError, match="problem odd: its prompt is not a running sum"):
        ProgrammaticTeacher(workers=workers).generate(
            problems,
            Sampling(),
            destination=tmp_path / "traces.jsonl",
            scratch=tmp_path / "scratch",
            seed=0,
            progress=progress,
        )
    assert not (tmp_path / "traces.jsonl").exists()


JOB = """
import sys
from pathlib import Path
from data_prep.generation import ProgrammaticTeacher, Sampling
from data_prep.sources.problems import RunningSumSource
from reasonforge.progress import Progress

root, workers = Path(sys.argv[1]), int(sys.argv[2])
ProgrammaticTeacher(workers=workers).generate(
    RunningSumSource(train=4000, eval=1).make(0).train, Sampling(samples=6),
    destination=root / "traces.jsonl", scratch=root / "scratch", seed=0, progress=Progress,
)
"""


def run_job(root: Path, workers: int) -> subprocess.Popen[bytes]:
    root.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, "-c", JOB, str(root), str(workers)], stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("workers", [1, 3])
def test_killed_twice_it_gives_the_same_bytes(tmp_path: Path, workers: int) -> None:
    killed = tmp_path / "killed"
    for shards in (1, 4):
        job = run_job(killed, workers)
        while len(list(killed.glob("scratch/shards/shard-*.jsonl"))) < shards:
            assert job.poll() is None, "it finished before it could be killed"
            time.sleep(0.002)
        helpers = psutil.Process(job.pid).children(recursive=True)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        assert psutil.wait_procs(helpers, timeout=30)[1] == [], "workers outlived their parent"
    kept = {path: path.stat().st_mtime_ns for path in killed.glob("scratch/shards/shard-*.jsonl")}
    assert len(kept) >= 4
    assert not (killed / "traces.jsonl").exists()
    assert run_job(killed, workers).wait() == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "a finished shard was done again"
    assert run_job(tmp_path / "whole", 2).wait() == 0
    assert (killed / "traces.jsonl").read_bytes() == (tmp_path / "whole" / "traces.jsonl").read_bytes()
    assert sum(1 for _ in read_jsonl(killed / "traces.jsonl")) == 24_000
