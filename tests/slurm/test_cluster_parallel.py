"""A parallel stage on the real cluster: one task for each GPU, over two nodes, in NeMo's own environment."""

from pathlib import Path

import pytest
from cluster_desk import SITE, ClusterDesk
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


def test_two_nodes_share_a_training_in_nemo(place: ClusterDesk) -> None:
    environment = place.root.parent / "nemo-environment"  # where srun's shell finds it; it stands for a venv
    (environment / "bin").mkdir(parents=True)
    nemo_launcher(environment / "bin/python")
    engine = {**OPTIONS, "steps": 6, "micro_batch_size": 4, "parallelism": {"tensor": 1}}
    place.write("shared.yaml", RECIPE.replace("ENGINE", str(engine).replace("'", '"').replace("False", "false")))
    # The nodes of the test cluster are this machine: their names are known to Slurm alone.
    variables = {"PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    stages = {"distill": {"runtime": {"type": "venv", "path": str(environment)}}}
    place.write("site.yaml", f"{SITE}environment: {variables}\nstages: {stages}\n")
    place.submit("shared.yaml")
    place.wait("shared")
    run = place.run("shared")
    log = (run / "logs/distill.log").read_text()
    assert "0: reasonforge: stage distill, attempt 1" in log
    assert "1: reasonforge: stage distill" not in log
    losses = metrics(run / "stages/distill")
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    started = [event for event in place.events("shared") if event["event"] == "attempt_started"]
    assert [len(event["nodes"]) for event in started if event["job"] == "distill"] == [2]
    assert [event["event"] for event in place.events("shared") if event.get("stage") == "distill"] == [
        "stage_started",
        "stage_finished",
    ]
    assert Path(run / "stages/export/model.safetensors").is_file()
