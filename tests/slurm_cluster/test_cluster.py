import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from desk import until

from slurm_cluster import Cluster
from slurm_cluster.fixtures import require_slurm

# Waits in the foreground for ever, but answers signals at once; `wait` is interrupted by a trapped signal.
STAY = "while true; do sleep 1000 & wait $!; done"


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_nodes_partitions_and_gpus(cluster: Cluster) -> None:
    shown = cluster.run(["sinfo", "--noheader", "--format=%P %D %l %G"]).stdout.split("\n")
    assert [line.split() for line in shown if line] == [
        ["batch*", "4", "1-00:00:00", "gpu:h100:8"],
        ["short", "4", "2:00", "gpu:h100:8"],
        ["low", "4", "1-00:00:00", "gpu:h100:8"],
        ["high", "4", "1-00:00:00", "gpu:h100:8"],
    ]


def test_it_listens_on_loopback_only(cluster: Cluster) -> None:
    found = [
        connection.laddr.ip
        for number in cluster.processes()
        for connection in psutil.Process(number).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(found) >= 6  # slurmdbd, slurmctld, four slurmd
    assert all(address.startswith("127.") for address in found), found


def test_a_job_of_two_nodes_sees_its_gpus(cluster: Cluster, tmp_path: Path) -> None:
    step = "srun bash -c 'echo $SLURMD_NODENAME $SLURM_LOCALID $CUDA_VISIBLE_DEVICES'"
    job = cluster.submit(
        "--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=8", f"--output={tmp_path}/out", "--wait", script=step
    )
    rows = sorted(line.split() for line in lines(tmp_path / "out"))
    assert [row[1:] for row in rows] == [["0", "0,1,2,3,4,5,6,7"], ["1", "0,1,2,3,4,5,6,7"]] * 2
    assert len({row[0] for row in rows}) == 2
    cluster.wait_for(lambda: all(state == "COMPLETED" for _, state in cluster.accounting(job)), "accounting")
    first, *steps = cluster.accounting(job, "JobID,Account,NNodes,AllocTRES")
    assert first[:3] == [str(job), "research", "2"]
    assert "gres/gpu=16" in first[3]
    assert [step[0] for step in steps] == [f"{job}.batch", f"{job}.0"]


def test_arrays_and_dependencies(cluster: Cluster, tmp_path: Path) -> None:
    def submit(script: str, *options: str) -> int:
        return cluster.submit(f"--output={tmp_path}/slurm-%j.out", *options, script=script)

    record = f"echo $SLURM_ARRAY_TASK_ID >> {tmp_path}/order"
    array = submit(record, "--array=0-4")
    after = submit(f"echo after >> {tmp_path}/order", f"--dependency=afterok:{array}")
    failed = submit("exit 3", f"--dependency=afterok:{after}")
    orphan = submit("true", f"--dependency=afterok:{failed}")
    forgotten = submit("true", f"--dependency=afterok:{failed}", "--kill-on-invalid-dep=yes")
    cluster.wait_state(failed, "FAILED")
    *tasks, last = lines(tmp_path / "order")
    assert sorted(tasks) == ["0", "1", "2", "3", "4"]
    assert last == "after"
    cluster.wait_state(forgotten, "CANCELLED")
    reason = cluster.run(["squeue", "--noheader", f"--jobs={orphan}", "--format=%T %r"]).stdout.strip()
    assert reason == "PENDING DependencyNeverSatisfied"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--array=0-1001"], "Invalid job array"),
        (["--time=10", "--partition=short"], "Requested time limit is invalid"),
        (["--nodes=5"], "Node count specification invalid|not available"),
        (["--gpus-per-node=9"], "not available"),
        (["--account=nobody"], "Invalid account"),
        (["--qos=debug", "--gpus-per-node=4"], "QOSMaxGRESPerUser|accounting/QOS policy"),
    ],
)
def test_limits_are_enforced(cluster: Cluster, options: list[str], said: str) -> None:
    done = cluster.run(["sbatch", *options], text="#!/bin/bash\ntrue\n", check=False)
    assert done.returncode == 1
    assert any(part in done.stderr for part in said.split("|")), done.stderr


def test_time_limits_memory_limits_and_lost_nodes(cluster: Cluster, tmp_path: Path) -> None:
    """All at once, as slurmctld looks at time limits every 30 s and for lost nodes after 10 s."""
    cluster.stop_node("node4", graceful=True)
    saving = f"trap 'echo saved > {tmp_path}/saved; exit 0' USR1; {STAY}"
    growing = "exec python3 -c 'import time; a = b\"x\" * 10**9; time.sleep(1000)'"
    saves = cluster.submit("--nodelist=node1", "--time=2", "--signal=B:USR1@60", script=saving)
    stays = cluster.submit("--nodelist=node1", "--time=1", script=STAY)
    grows = cluster.submit("--nodelist=node1", "--mem=100", f"--output={tmp_path}/grows", script=growing)
    for job in (saves, stays):
        cluster.wait_state(job, "RUNNING")
    cluster.expire(saves, 50)
    cluster.expire(stays, 5)
    assert cluster.wait_state(grows, "FAILED", "COMPLETED") == "FAILED"
    assert "exceeded memory limit" in (tmp_path / "grows").read_text()
    assert cluster.wait_state(saves, "TIMEOUT", "FAILED", "COMPLETED") == "COMPLETED"
    assert lines(tmp_path / "saved") == ["saved"]
    assert cluster.wait_state(stays, "TIMEOUT", "FAILED", "COMPLETED") == "TIMEOUT"
    cluster.wait_node("node4", "down*")
    cluster.start_node("node4")
    cluster.wait_node("node4", "idle")


def test_requeued_jobs_keep_their_number(cluster: Cluster, tmp_path: Path) -> None:
    """By hand, by the loss of the node, and by a preemption, at once: Slurm holds a requeued job back for 9 s.

    A preempted job that ends by itself in the GraceTime is over, so this one stays.
    """
    script = f"log={tmp_path}/$SLURM_JOB_ID; echo start >> $log; trap 'echo signal >> $log' USR1; {STAY}"
    by_hand = cluster.submit("--nodelist=node1", script=script)
    lost = cluster.submit("--nodelist=node2", script=script)
    alone = ["--nodelist=node3", "--exclusive"]
    low = cluster.submit("--partition=low", "--signal=B:USR1@60", *alone, script=script)
    for job in (by_hand, lost, low):
        cluster.wait_for((tmp_path / str(job)).exists, "first start")
    cluster.run(["scontrol", "requeue", str(by_hand)])
    cluster.down_node("node2", "test")
    cluster.submit("--partition=high", *alone, script="true")
    cluster.resume_node("node2")
    written = {by_hand: ["start", "start"], lost: ["start", "start"], low: ["start", "signal", "start"]}
    cluster.wait_for(
        lambda: all(lines(tmp_path / str(job)) == expected for job, expected in written.items()), "second starts"
    )
    for job in written:
        assert "Restarts=1 " in cluster.run(["scontrol", "show", "job", str(job)]).stdout
    assert [cluster.accounting(job)[0] for job in written] == [
        [str(by_hand), "REQUEUED"],
        [str(lost), "NODE_FAIL"],
        [str(low), "PREEMPTED"],
    ]


def test_a_preemption_without_the_user_signal(cluster: Cluster, tmp_path: Path) -> None:
    """The steps of the job get SIGTERM at once; its batch script only when GraceTime is over."""
    cluster.reconfigure(preempt_send_user_signal=False)
    step = "\n".join(f"trap 'echo {name} > {tmp_path}/got; exit' {name}" for name in ("USR1", "TERM"))
    (tmp_path / "step").write_text(f"{step}\ntouch {tmp_path}/up\n{STAY}\n")
    alone = ["--nodelist=node1", "--exclusive"]
    cluster.submit("--partition=low", "--signal=USR1@60", *alone, script=f"srun bash {tmp_path}/step")
    cluster.wait_for((tmp_path / "up").exists, "start")
    high = cluster.submit("--partition=high", *alone, script="true")
    cluster.wait_state(high, "COMPLETED")
    assert lines(tmp_path / "got") == ["TERM"]


def test_a_job_survives_its_daemons(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit("--nodelist=node4", script=f"until [ -e {tmp_path}/go ]; do sleep 0.1; done")
    cluster.wait_state(job, "RUNNING")
    cluster.stop_node("node4")
    cluster.restart_controller()
    cluster.start_node("node4")
    cluster.wait_node("node4", "mixed")
    assert cluster.state(job) == "RUNNING"
    (tmp_path / "go").touch()
    cluster.wait_state(job, "COMPLETED")


OWNER = """\
import sys, time
from slurm_cluster import Cluster
with Cluster(nodes=1, gpus=0) as cluster:
    job = cluster.submit(script="trap '' TERM; setsid sleep 1000 & sleep 1000")
    cluster.wait_state(job, "RUNNING")
    print(cluster.directory, *cluster.processes(), flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_nothing_is_left_behind(running_cluster: Cluster, end: str) -> None:
    """Neither after a stop nor after a SIGKILL of the owner; another cluster, the shared one, is not touched."""
    require_slurm()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as owner:
        assert owner.stdout is not None
        directory, *numbers = owner.stdout.readline().split()
        started = {int(number): psutil.Process(int(number)).create_time() for number in numbers}
        assert len(started) >= 9  # supervisor, munged, mariadbd, slurmdbd, slurmctld (2), slurmd, slurmstepd, the job
        if end == "kill":
            owner.send_signal(signal.SIGKILL)
        owner.communicate("\n" if end == "stop" else None)
    until(lambda: not any(lives(number, time) for number, time in started.items()))
    assert Path(directory).exists() == (end == "kill")
    shutil.rmtree(directory, ignore_errors=True)
    assert all(running_cluster.running().values())
    assert running_cluster.run(["srun", "echo", "alive"]).stdout == "alive\n"


def lives(number: int, created: float) -> bool:
    try:
        return psutil.Process(number).create_time() == created
    except psutil.NoSuchProcess:
        return False
