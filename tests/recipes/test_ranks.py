"""Which process of a parallel stage this is, where the processes meet, and who publishes."""

import pytest

from reasonforge.errors import RequestError
from recipes.ranks import ALONE, Rank, find_rank, first_node, meeting_point

STEP = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "1", "SLURM_PROCID": "11", "SLURM_NTASKS": "16", "SLURM_LOCALID": "3",
    "SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[007-008]",
}  # fmt: skip


def test_under_srun() -> None:
    rank = find_rank(STEP)
    assert rank == Rank(11, 16, 3, 2)
    assert (rank.first, rank.node, rank.per_node) == (False, 1, 8)
    assert find_rank({**STEP, "RANK": "0", "WORLD_SIZE": "1"}) == rank


def test_a_batch_script_is_no_step_of_many_tasks() -> None:
    """It has the job's number of tasks in its environment, and the number 0, but is alone."""
    assert find_rank({name: STEP[name] for name in ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_NTASKS")}) == ALONE


def test_under_torchrun() -> None:
    assert find_rank({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}) == Rank(5, 8, 1, 2)
    assert find_rank({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}) == Rank(1, 2, 1, 1)
    assert find_rank({}) == ALONE == Rank(0, 1, 0, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "2"},
        {**STEP, "SLURM_LOCALID": "8"},
        {**STEP, "SLURM_STEP_NUM_NODES": "3"},
    ],
)
def test_variables_that_contradict_each_other(wrong: dict[str, str]) -> None:
    with pytest.raises(RequestError, match="no rank of"):
        find_rank(wrong)


def test_all_processes_meet_at_one_place() -> None:
    host, port = meeting_point(find_rank(STEP), STEP)
    assert host == "gpu007"
    assert 20000 <= port < 30000
    other = {**STEP, "SLURM_PROCID": "2", "SLURM_LOCALID": "2"}
    assert meeting_point(find_rank(other), other) == (host, port)
    next_step = {**STEP, "SLURM_STEP_ID": "2"}
    assert meeting_point(find_rank(next_step), next_step)[1] != port
    given = {"MASTER_ADDR": "head", "MASTER_PORT": "1234"}
    assert meeting_point(Rank(1, 2, 1), given) == ("head", 1234)
    assert meeting_point(find_rank(STEP), {**STEP, **given}) == ("head", 1234)


def test_one_process_takes_any_port_and_several_need_one() -> None:
    assert meeting_point(ALONE, {"MASTER_PORT": "1234"}) == ("127.0.0.1", 0)
    with pytest.raises(RequestError, match="MASTER_PORT: not set, with 2 processes; start them with torchrun or srun"):
        meeting_point(Rank(0, 2), {})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"), ("gpu[003-010,012],login1", "gpu003"), ("a1,a2", "a1"), ("n[7]", "n7"),
        ("rack2-n[01-04]-ib", "rack2-n01-ib"), ("host.example.org", "host.example.org"),
    ],
)  # fmt: skip
def test_the_first_of_a_list_of_nodes(nodes: str, first: str) -> None:
    assert first_node(nodes) == first
