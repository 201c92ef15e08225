"""A parallel stage on the real cluster: one task for each GPU, over two nodes, in NeMo's own environment."""

import json
import shutil
import signal

import pytest
from cluster_desk import SITE, ClusterDesk, go_on, was_sent
from nemo_place import ROOT, nemo_launcher
from nemo_runs import OPTIONS, metrics

pytestmark = pytest.mark.xdist_group("slurm")

RECIPE = """\
name: shared
seed: 1
stages:
  problems: {type: problems, source: {type: running_sum, train: 60, eval: 5}}
  base:
    type: base_model
    inputs: {problems: problems}
    source: {type: scratch, model: {vocabulary: 300}, training: {steps: 1, learning_rate: 1e-3}}
  generate: {type: generate, inputs: {problems: problems}, engine: {type: programmatic}}
  curate: {type: curate, inputs: {traces: generate, problems: problems}, grader: {type: exact}}
  tokenize: {type: tokenize, inputs: {dataset: curate, model: base}, max_tokens: 160}
  import: {type: import_checkpoint, inputs: {model: base}, directory: nemo, layer_spec: local, pad_vocabulary: 4}
  distill:
    type: distill
    inputs: {model: import, tokens: tokenize}
    engine: ENGINE
    resources: {nodes: 2, gpus_per_node: 1, hours: 0.2}
  export: {type: export_checkpoint, inputs: {checkpoint: distill}}
"""


def test_two_nodes_share_a_training_in_nemo_and_a_time_limit_changes_nothing(place: ClusterDesk) -> None:
    environment = place.root.parent / "nemo-environment"  # where srun's shell finds it; it stands for a venv
    (environment / "bin").mkdir(parents=True)
    nemo_launcher(environment / "bin/python")
    engine = {**OPTIONS, "steps": 300, "micro_batch_size": 4, "parallelism": {"tensor": 1}}
    place.write("shared.yaml", RECIPE.replace("ENGINE", str(engine).replace("'", '"').replace("False", "false")))
    # The nodes of the test cluster are this machine: their names are known to Slurm alone.
    variables = {"PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    stages = {"distill": {"runtime": {"type": "venv", "path": str(environment)}}}
    place.write("site.yaml", f"{SITE}environment: {variables}\nstages: {stages}\n")
    place.submit("shared.yaml")
    place.wait("shared")
    run = place.run("shared")
    undisturbed = check_finished(place)
    log = (run / "logs/distill.log").read_text()
    assert "0: reasonforge: stage distill, attempt 1" in log
    assert "1: reasonforge: stage distill" not in log
    started = [event for event in place.events("shared") if event["event"] == "attempt_started"]
    assert [len(event["nodes"]) for event in started if event["job"] == "distill"] == [2]
    assert [event["event"] for event in place.events("shared") if event.get("stage") == "distill"] == [
        "stage_started",
        "stage_finished",
    ]

    for stage in ("distill", "export"):
        shutil.rmtree(run / "stages" / stage)
    job = place.submit("shared.yaml")["distill"]
    process = place.halted("shared", "distill")  # one rank of the two: the other waits for it
    place.cluster.limit(job, 75)
    place.cluster.wait_for(lambda: was_sent(process, signal.SIGUSR2), "SIGUSR2", 120)
    go_on(process)
    place.cluster.extend_when_requeued(job, 30)
    place.wait("shared")
    assert place.attempts("shared", "distill")[1:] == [("time_limit", True), ("done", False)]
    assert [event["event"] for event in place.events("shared") if event.get("stage") == "distill"][2:] == [
        "stage_started",
        "stage_interrupted",
        "stage_started",
        "stage_finished",
    ]
    assert check_finished(place) == undisturbed


def check_finished(place: ClusterDesk) -> tuple[list[float], str]:
    """The losses of the finished training, and the exported model's digest."""
    stages = place.run("shared") / "stages"
    losses = metrics(stages / "distill")
    assert len(losses) == 300
    assert losses[-1] < losses[0]
    receipt = json.loads((stages / "export/receipt.json").read_text())
    return losses, receipt["files"]["model.safetensors"]["sha256"]
