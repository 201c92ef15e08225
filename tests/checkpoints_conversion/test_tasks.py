"""Several tasks of one conversion: the same bytes as one task makes, through kills and restarts of any of them."""

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from large_model import digests, make_large_model, start
from tiny_checkpoints import make_model, to_megatron

from checkpoints_conversion.publishing import RECEIPT
from checkpoints_conversion.tasks import ALONE, Task, this_task
from reasonforge.errors import RequestError

TASKS = 3
Process = subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in both formats, and what one task makes of each."""
    place = tmp_path_factory.mktemp("large")
    make_large_model(place / "hf")
    to_megatron(place / "hf", place / "import")
    (place / "megatron").symlink_to("import")
    assert start("export", place / "megatron", place / "export", *SMALL_SHARDS).wait() == 0
    return place


SMALL_SHARDS = ("--max-shard-size", 0.02)
SOURCES = {"import": "hf", "export": "megatron"}
OPTIONS: dict[str, tuple[object, ...]] = {"import": (), "export": SMALL_SHARDS}


def start_task(verb: str, large: Path, out: Path, number: int, *more: object, patience_s: float = 60) -> Process:
    task = ("--task", number, "--tasks", TASKS)
    return start(verb, large / SOURCES[verb], out, *OPTIONS[verb], *task, *more, patience_s=patience_s)


def end(process: Process) -> str:
    """What a task says, after its end, which must be good."""
    out, err = process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.fixture
def running() -> Iterator[dict[int, Process]]:
    """The tasks that run, by number; none outlives its test."""
    found: dict[int, Process] = {}
    yield found
    for process in found.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("verb", ["import", "export"])
def test_three_tasks_make_what_one_makes(verb: str, large: Path, tmp_path: Path, running: dict[int, Process]) -> None:
    out = tmp_path / "out"
    for number in reversed(range(TASKS)):
        running[number] = start_task(verb, large, out, number)
    for process in running.values():
        assert "converted" in end(process)
    assert digests(out) == digests(large / verb)
    assert (out / RECEIPT).read_bytes() == (large / verb / RECEIPT).read_bytes()
    assert not (tmp_path / ".out.converting").exists()
    for number in range(TASKS):
        assert "was already converted" in end(start_task(verb, large, out, number))


@pytest.mark.parametrize("verb", ["import", "export"])
def test_any_task_is_killed_and_goes_on(verb: str, large: Path, tmp_path: Path, running: dict[int, Process]) -> None:
    out, kept = tmp_path / "out", [0]
    for attempt in range(12):
        for number in set(range(TASKS)) - {number for number, process in running.items() if process.poll() is None}:
            running[number] = start_task(verb, large, out, number)
        deadline = time.monotonic() + 2
        while journalled(tmp_path) <= kept[-1] and time.monotonic() < deadline and not out.exists():
            time.sleep(0.005)
        for number in range(TASKS) if attempt % 4 == 3 else [attempt % TASKS]:
            running[number].kill()
            running.pop(number).communicate()
        if out.exists():
            break
        kept.append(journalled(tmp_path))
    assert kept == sorted(kept), "what was done is kept"
    assert len(set(kept)) > 2, "no kill came in the middle"
    for number in set(range(TASKS)) - set(running):
        running[number] = start_task(verb, large, out, number)
    for process in running.values():
        end(process)
    assert digests(out) == digests(large / verb)
    assert (out / RECEIPT).read_bytes() == (large / verb / RECEIPT).read_bytes()


def journalled(place: Path) -> int:
    """How many writes are on the disk; none are told of any more once all is published."""
    with suppress(FileNotFoundError):
        return sum(len(path.read_text().split()) for path in place.glob(".out.converting/*/done.*"))
    return 0


def test_one_task_ends_what_three_began(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in (0, 1):
        process = start_task("import", large, out, number, patience_s=1)
        if number == 0:
            while not list(tmp_path.glob(".out.converting/*/ready")):
                time.sleep(0.01)
        process.communicate()
        assert process.returncode == 1
    journal = next(tmp_path.glob(".out.converting/*/done.1"))
    name, _, offset = journal.read_text().split()[0].partition(":")
    with open(journal.parent / "tree" / name, "r+b") as handle:
        handle.seek(int(offset))
        flipped = bytes([handle.read(1)[0] ^ 1])
        handle.seek(int(offset))
        handle.write(flipped)
    end(start("import", large / "hf", out))
    differ = {file for file, digest in digests(out).items() if digest != digests(large / "import")[file]}
    assert differ == {name}, "what the two tasks wrote was not written again, and all else was"


def test_more_tasks_than_files(large: Path, tmp_path: Path, running: dict[int, Process]) -> None:
    out = tmp_path / "out"
    for number in range(TASKS):
        running[number] = start("export", large / "megatron", out, "--task", number, "--tasks", TASKS)
    for process in running.values():
        assert "converted" in end(process)
    assert {path.name for path in out.glob("*.safetensors")} == {"model.safetensors"}


def test_the_task_that_is_missing_is_named(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for numbers, told in (
        ((1,), "task 0 of 3 has not begun with the same files and options"),
        ((0,), "task 1, 2 of 3 has not written its part"),
        ((0, 1), "task 2 of 3 has not"),
    ):
        processes = [start_task("import", large, out, number, patience_s=1) for number in numbers]
        for process in processes:
            errors = process.communicate()[1].decode().splitlines()
            assert process.returncode == 1
            assert errors[-1].startswith(f"error: {out}: {told}")
            assert "and nothing was done for 1 s; start every task again" in errors[-1]
        assert not out.exists()


def test_tasks_that_disagree_do_not_meet(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    leader = start_task("import", large, out, 0, patience_s=2)
    other = start_task("import", large, out, 1, "--pad-vocabulary", 8, patience_s=2)
    assert b"task 0 of 3 has not begun with the same files and options" in other.communicate()[1]
    assert b"task 1, 2 of 3 has not written its part" in leader.communicate()[1]
    assert not out.exists()


def test_another_conversion_clears_what_this_one_left(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    start_task("import", large, out, 0, patience_s=0.1).communicate()
    assert len(list(tmp_path.glob(".out.converting/*/tree"))) == 1
    make_model(tmp_path / "hf", "qwen2")
    to_megatron(tmp_path / "hf", out)
    to_megatron(tmp_path / "hf", tmp_path / "same")
    assert digests(out) == digests(tmp_path / "same")
    assert not (tmp_path / ".out.converting").exists()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ALONE),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}, Task(2, 4)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, ALONE),  # a batch script, outside of any step
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, ALONE),
        ({"SLURM_PROCID": "7", "SLURM_STEP_NUM_TASKS": "4"}, ALONE),
        ({"SLURM_PROCID": "x", "SLURM_STEP_NUM_TASKS": "4"}, ALONE),
    ],
)
def test_the_task_of_a_slurm_step(environment: Mapping[str, str], expected: Task) -> None:
    assert this_task(None, None, environment) == expected
    assert this_task(1, 2, environment) == Task(1, 2)
    assert this_task(None, 1, environment) == ALONE


@pytest.mark.parametrize(("number", "tasks"), [(3, 3), (-1, 3), (0, 0), (1, None), (None, 3)])
def test_a_task_that_there_is_not(number: int | None, tasks: int | None) -> None:
    with pytest.raises(RequestError, match="--task"):
        this_task(number, tasks, {})


def test_each_file_has_one_owner_and_the_load_is_even() -> None:
    sizes = {f"file-{number}": 1000 - number % 7 for number in range(50)}
    for tasks in (1, 3, 8, 60):
        parts = [Task(number, tasks).own(sizes) for number in range(tasks)]
        assert sorted(name for part in parts for name in part) == sorted(sizes)
        loads = [sum(sizes[name] for name in part) for part in parts]
        assert max(loads) - min(loads) <= 1010


def test_the_number_of_files_grows_with_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from checkpoints_conversion import torch_dist

    make_model(tmp_path / "hf", "qwen2")
    monkeypatch.setattr(torch_dist, "FILE_BYTES", 10_000)
    to_megatron(tmp_path / "hf", tmp_path / "out")
    found = len(list(tmp_path.rglob("*.distcp")))
    assert 4 < found <= torch_dist.MOST_FILES
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(torch_dist, "MOST_FILES", 6)
    to_megatron(tmp_path / "hf", tmp_path / "out")
    assert len(list(tmp_path.rglob("*.distcp"))) == 6
