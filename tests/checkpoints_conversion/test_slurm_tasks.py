"""A conversion under a real Slurm: the tasks of a step share it without an option; a batch script alone does it all."""

import sys
from pathlib import Path

import pytest
from large_model import ROOT, digests
from slurm_cluster.cluster import Cluster
from tiny_checkpoints import make_model, to_megatron

pytestmark = pytest.mark.xdist_group("slurm")


def test_the_tasks_of_a_step(cluster: Cluster, tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "qwen2")
    to_megatron(tmp_path / "hf", tmp_path / "one")
    command = [sys.executable, "-m", "reasonforge", "convert", "import", str(tmp_path / "hf")]
    step = ["srun", "--nodes=2", "--ntasks=3", f"--chdir={ROOT}", *command, str(tmp_path / "by-step")]
    done = cluster.run(step)
    assert done.returncode == 0, done.stderr
    assert all(f"importing, task {number} of 3: " in done.stderr for number in range(3))
    assert digests(tmp_path / "by-step") == digests(tmp_path / "one")


def test_a_batch_script_outside_of_any_step(cluster: Cluster, tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "qwen2")
    script = tmp_path / "job.sh"
    script.write_text(
        f"#!/bin/bash\n#SBATCH --ntasks=3 --chdir={ROOT} --output={tmp_path}/log\n"
        f"{sys.executable} -m reasonforge convert import {tmp_path}/hf {tmp_path}/out\n"
    )
    done = cluster.run(["sbatch", "--wait", str(script)])
    assert done.returncode == 0, (tmp_path / "log").read_text()
    assert "task " not in (tmp_path / "log").read_text()
    assert (tmp_path / "out/iter_0000001/.metadata").is_file()
