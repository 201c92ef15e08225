"""The evaluate stage with a real model, engine and grader: what it publishes, and that a kill changes nothing."""

import json
from pathlib import Path

import pytest

from data_prep.generation import HFEngine, Sampling
from data_prep.grading import ExactGrader, MathVerifyGrader
from data_prep.sources.problems import RunningSumSource
from reasonforge.artifacts import Artifact
from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl, write_jsonl
from recipes.evaluation.scoring import read_scores
from recipes.stage import StageContext
from recipes.stages.evaluate import EvaluateInputs, EvaluateStage

SAMPLING = Sampling(samples=4, max_tokens=12)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Problems, and a model from scratch that has learned for a few seconds what an answer looks like."""
    from recipes.engines.trl_sft import TRLSFT
    from recipes.stages.base_model import ScratchSource

    root = tmp_path_factory.mktemp("inputs")
    problems, model = root / "problems", root / "model"
    made = RunningSumSource(train=300, eval=6).make(0)
    write_jsonl(problems / "train.jsonl", made.train)
    write_jsonl(problems / "eval.jsonl", made.eval)
    opened = {"problems": Artifact(problems, None), "model": Artifact(model, None)}
    source = ScratchSource(training=TRLSFT(steps=30, learning_rate=1e-2, adam_beta2=0.98))
    source.make(context(root / "base", opened, model))
    return opened


def context(folder: Path, inputs, out=None):
    out = out or folder / "out"
    out.mkdir(parents=True)
    (folder / "scratch").mkdir(parents=True, exist_ok=True)
    return StageContext("evaluate-base", 0, inputs, out, folder / "scratch", folder / "progress.json")


def stage(**options):
    options = {"sampling": SAMPLING, "engine": HFEngine(batch_size=8), "grader": ExactGrader(), **options}
    return EvaluateStage(inputs=EvaluateInputs(model="base", problems="problems"), resamples=200, **options)


@pytest.mark.parametrize("grader", [ExactGrader(), MathVerifyGrader()])
def test_a_real_model_is_sampled_graded_and_scored(tmp_path, inputs, grader):
    counts = stage(grader=grader).run(context(tmp_path, inputs))
    rows = list(read_jsonl(tmp_path / "out" / "samples.jsonl"))
    scores = read_scores(tmp_path / "out" / "scores.json")
    assert len(rows) == counts["samples"] == 24
    assert scores.sampling == {"samples": 4, "temperature": 1.0, "top_p": 1.0, "max_tokens": 12}
    assert scores.grader["type"] == grader.type
    assert scores.metrics["pass@1"].value == pytest.approx(sum(r["verdict"] == "correct" for r in rows) / 24, abs=1e-6)
    assert scores.columns.truncated == pytest.approx(sum(r["finish_reason"] == "length" for r in rows) / 24, abs=1e-6)
    assert scores.columns.tokens_mean == pytest.approx(sum(r["completion_tokens"] for r in rows) / 24, abs=1e-6)
    assert any(r["extracted"] for r in rows), "the model has learned to box an answer"


def test_an_interrupted_evaluation_ends_as_if_it_had_not_been(tmp_path, inputs):
    stage().run(context(tmp_path / "whole", inputs))
    stage().run(context(tmp_path / "cut", inputs, tmp_path / "first"))
    (tmp_path / "cut" / "scratch" / "traces.jsonl").unlink()
    sorted((tmp_path / "cut" / "scratch" / "generate").iterdir())[-1].unlink()
    stage(workers=1).run(context(tmp_path / "cut", inputs))
    for name in ("samples.jsonl", "scores.json"):
        assert (tmp_path / "cut" / "out" / name).read_bytes() == (tmp_path / "whole" / "out" / name).read_bytes()


def test_a_limit_takes_the_first_problems(tmp_path, inputs):
    stage(limit=2).run(context(tmp_path, inputs))
    body = json.loads((tmp_path / "out" / "scores.json").read_text())
    first = [row["id"] for row in read_jsonl(inputs["problems"].path / "eval.jsonl")][:2]
    assert [entry["id"] for entry in body["per_problem"]] == first


def test_no_problems_are_a_wrong_request(tmp_path, inputs):
    write_jsonl(tmp_path / "problems" / "eval.jsonl", [])
    empty = {**inputs, "problems": Artifact(tmp_path / "problems", None)}
    with pytest.raises(RequestError, match="no problems to evaluate on"):
        stage().run(context(tmp_path, empty))
