"""The tiny recipe of the `nemo` engine from beginning to end, by the command line, with the real NeMo on the CPU."""

import json

import pytest
from desk import Desk
from nemo_place import ROOT, nemo_launcher

pytestmark = pytest.mark.xdist_group("nemo")

RECIPE = str(ROOT / "recipes/distill-qwen2-tiny-nemo.yaml")
SMALLER = (
    "stages.problems.source={type: running_sum, train: 300, eval: 20}",
    "stages.base.source.training.steps=5",
    "stages.distill.engine.steps=30",
    "stages.distill.engine.log_to=[tensorboard]",
    "stages.evaluate.sampling.samples=1",
)


def test_a_model_is_distilled_in_nemo_and_evaluated_at_home(desk: Desk) -> None:
    """Without a GPU its engine is refused in a line; with the tests' pretence it runs."""
    sets = [argument for option in SMALLER for argument in ("--set", option)]
    refused = desk("run", RECIPE, *sets)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "engine nemo: this machine has no GPU that torch can use; take engine trl here" in refused.stderr
    python = str(nemo_launcher(desk.root / "nemo-python"))
    done = desk("run", RECIPE, *sets, REASONFORGE_NEMO_PYTHON=python)
    run = desk.run("distill-qwen2-tiny-nemo")
    assert done.returncode == 0, (run / "logs/distill.log").read_text()[-6000:] + done.stderr
    rows = [json.loads(line) for line in (run / "stages/distill/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 5, 10, 15, 20, 25, 30]
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert list((run / "stages/distill/tensorboard").glob("events.*"))
    assert desk.stages("distill-qwen2-tiny-nemo") >= {"import", "distill", "export", "evaluate"}
