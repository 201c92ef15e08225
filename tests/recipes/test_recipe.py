"""Recipes as a graph: order, ancestors, inputs that fit, and the resolved form that stages read."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from reasonforge.errors import RequestError
from recipes.plan import make_plan
from recipes.recipe import Recipe, load_recipe, load_resolved, save_resolved

PROBLEMS = {"type": "problems", "source": {"type": "running_sum", "train": 20, "eval": 5}}
GENERATE = {"type": "generate", "inputs": {"problems": "problems"}, "engine": {"type": "programmatic"}}
BASE = {"type": "base_model", "source": {"type": "checkpoint", "path": "model"}}
SCORES = {
    "sampling": {"samples": 2, "max_tokens": 8},
    "type": "evaluate",
    "inputs": {"model": "base", "problems": "problems"},
    "engine": {"type": "hf"},
    "grader": {"type": "exact"},
}


def written(root: Path, **stages: Any) -> Path:
    path = root / "r.yaml"
    path.write_text(yaml.safe_dump({"name": "r", "stages": stages}, sort_keys=False))
    return path


def curate(traces: str) -> dict[str, Any]:
    return {"type": "curate", "inputs": {"traces": traces, "problems": "problems"}, "grader": {"type": "exact"}}


def refusal(path: Path) -> str:
    with pytest.raises(RequestError) as caught:
        load_recipe(path)
    return str(caught.value).replace(f"{path}:", "")


def test_order_is_that_of_the_recipe_where_the_graph_allows(tmp_path: Path) -> None:
    recipe = load_recipe(
        written(tmp_path, curated=curate("b"), base=BASE, b=GENERATE, a=GENERATE, problems=PROBLEMS, other=curate("a"))
    )
    assert recipe.order() == ["base", "problems", "b", "curated", "a", "other"]
    assert recipe.ancestors("other") == {"a", "problems"}
    assert recipe.ancestors("base") == set()
    plan = make_plan(recipe)
    assert [entry["name"] for entry in plan["stages"]] == recipe.order()
    assert plan["stages"][0]["engine"] == "checkpoint"


def test_groups_of_inputs_are_inputs(tmp_path: Path) -> None:
    report = {"type": "report", "inputs": {"scores": {"base": "s", "again": "s"}, "training": {"base": "base"}}}
    recipe = load_recipe(written(tmp_path, report=report, s=SCORES, base=BASE, problems=PROBLEMS))
    assert recipe.order() == ["base", "problems", "s", "report"]
    assert [(ref.name, ref.stage, ref.kind) for ref in recipe.stages["report"].input_refs()] == [
        ("scores.base", "s", "scores"),
        ("scores.again", "s", "scores"),
        ("training.base", "base", "hf_checkpoint"),
    ]
    report["inputs"]["scores"]["again"] = "base"
    assert refusal(written(tmp_path, report=report, s=SCORES, base=BASE, problems=PROBLEMS)).endswith(
        ": stages.report.inputs.scores.again: base makes hf_checkpoint, but scores is needed; scores is made by: s"
    )


def test_inputs_that_do_not_fit(tmp_path: Path) -> None:
    assert refusal(written(tmp_path, problems=PROBLEMS, generate=GENERATE, curate=curate("genrate"))) == (
        "18: stages.curate.inputs.traces: found 'genrate', but no stage of that name makes anything; "
        "did you mean 'generate'?"
    )
    assert refusal(written(tmp_path, problems=PROBLEMS, generate=GENERATE, curate=curate("problems"))).endswith(
        "problems makes problems, but traces is needed; traces is made by: generate"
    )
    assert refusal(written(tmp_path, problems=PROBLEMS, curate=curate("problems"))).endswith(
        "traces is made by: no stage of this recipe"
    )
    selfish = {**GENERATE, "inputs": {"problems": "problems", "teacher": "t"}, "engine": {"type": "hf"}}
    distill = {"type": "distill", "inputs": {"model": "t", "tokens": "tokens"}, "engine": {"type": "trl", "steps": 1}}
    tokens = {"type": "tokenize", "inputs": {"dataset": "curate", "model": "t"}, "max_tokens": 9}
    line = refusal(
        written(tmp_path, problems=PROBLEMS, t=distill, tokens=tokens, curate=curate("generate"), generate=selfish)
    )
    assert ": stages need each other in a circle: t -> t; " in line


def test_an_engine_takes_and_makes_checkpoints_of_its_kind(tmp_path: Path) -> None:
    tokens = {"type": "tokenize", "inputs": {"dataset": "curate", "model": "base"}, "max_tokens": 9}
    before = {"problems": PROBLEMS, "generate": GENERATE, "curate": curate("generate"), "base": BASE, "tokens": tokens}
    imported = {"type": "import_checkpoint", "inputs": {"model": "base"}, "directory": "nemo"}

    def distill(engine: str, **inputs: str) -> dict[str, Any]:
        return {"type": "distill", "inputs": {"tokens": "tokens", **inputs}, "engine": {"type": engine, "steps": 1}}

    nemo = distill("nemo", model="into", teacher="into")
    assert "inputs.teacher is given, but engine.distillation is not; set engine.distillation: {}" in refusal(
        written(tmp_path, **before, into=imported, trained=nemo)
    )
    nemo["engine"]["distillation"] = {}
    alone = {**nemo, "inputs": {"tokens": "tokens", "model": "into"}}
    assert "engine.distillation is given, but inputs.teacher is not; name the stage" in refusal(
        written(tmp_path, **before, into=imported, trained=alone)
    )
    recipe = load_recipe(written(tmp_path, **before, into=imported, trained=nemo))
    stage = recipe.stages["trained"]
    assert (stage.kind, stage.parallel, stage.environment) == ("megatron_checkpoint", True, "nemo")
    assert {ref.name: ref.kind for ref in stage.input_refs()} == {
        "model": "megatron_checkpoint", "tokens": "tokens", "teacher": "megatron_checkpoint",
    }  # fmt: skip
    assert make_plan(recipe)["stages"][-1]["environment"] == "nemo"
    assert refusal(written(tmp_path, **before, into={**imported, "directory": "bridge"}, trained=nemo)).endswith(
        ": inputs.model is into, which makes directories of kind bridge, but engine nemo takes those of kind nemo; "
        "set directory: nemo there"
    )
    again = {**distill("megatron_bridge", model="trained"), "inputs": {"tokens": "tokens", "model": "trained"}}
    assert refusal(written(tmp_path, **before, into=imported, trained=nemo, again=again)).endswith(
        ": inputs.model is trained, which makes directories of kind nemo, but engine megatron_bridge takes those of "
        "kind bridge; take engine megatron_bridge there too"
    )
    successor = {**nemo, "engine": {**nemo["engine"], "type": "megatron_bridge"}}
    bridge = {**imported, "directory": "bridge"}
    stage = load_recipe(written(tmp_path, **before, into=bridge, trained=successor)).stages["trained"]
    assert (stage.kind, stage.parallel, stage.environment) == ("megatron_checkpoint", True, "bridge")
    plain = load_recipe(written(tmp_path, **before, trained=distill("trl", model="base"))).stages["trained"]
    assert (plain.kind, plain.parallel, plain.environment) == ("hf_checkpoint", False, None)

    assert refusal(written(tmp_path, **before, trained=distill("nemo", model="base"))).endswith(
        ": stages.trained.inputs.model: base makes hf_checkpoint, but distill takes megatron_checkpoint with engine "
        "nemo; put an import_checkpoint stage between"
    )
    scores = {**SCORES, "inputs": {"model": "trained", "problems": "problems"}}
    assert refusal(written(tmp_path, **before, into=imported, trained=nemo, scores=scores)).endswith(
        ": stages.scores.inputs.model: trained makes megatron_checkpoint, but evaluate takes hf_checkpoint; "
        "put an export_checkpoint stage between"
    )
    assert "inputs.teacher is given, but engine trl learns from traces alone" in refusal(
        written(tmp_path, **before, trained=distill("trl", model="base", teacher="base"))
    )
    assert refusal(written(tmp_path, **before, trained=distill("nimo", model="into"))).endswith(
        ": stages.trained.engine.type: found 'nimo', which does not exist; did you mean 'nemo'?"
    )
    report = {"type": "report", "inputs": {"scores": {"base": "s"}, "training": {"base": "trained"}}}
    load_recipe(written(tmp_path, **before, into=imported, trained=nemo, s=SCORES, report=report))


@pytest.mark.parametrize("name", ["", "a b", ".hidden", "a/b", "-x", "é", "x" * 300 + "/"])
def test_names_are_fit_for_a_file_system(tmp_path: Path, name: str) -> None:
    assert "string should match pattern" in refusal(written(tmp_path, **{name: PROBLEMS}))


def test_a_scratch_model_needs_problems(tmp_path: Path) -> None:
    line = refusal(written(tmp_path, problems=PROBLEMS, base={"type": "base_model", "source": {"type": "scratch"}}))
    assert line.endswith("source is scratch, but inputs.problems is not given; name the stage that makes problems")


@pytest.mark.parametrize(
    ("engine", "line"),
    [
        ({"prompts": 3, "group_size": 3, "updates": 2}, "prompts x group_size = 9 is not divisible by updates = 2; "),
        ({"prompts": 4, "micro_batch_size": 5}, "micro_batch_size = 5 does not divide a step's 32 completions"),
        ({"updates": 4, "save_every": 10}, "save_every = 10 is not a multiple of updates = 4, so a resume would"),
        ({"sync_reference": {"every": 2}}, "sync_reference is given but kl_coefficient is 0, so there is no reference"),
    ],
)
def test_options_that_contradict_each_other(tmp_path: Path, engine: dict[str, Any], line: str) -> None:
    grpo = {
        "type": "grpo",
        "inputs": {"model": "base", "problems": "problems"},
        "grader": {"type": "exact"},
        "engine": {"steps": 4, "max_completion_tokens": 8, **engine},
    }
    assert line in refusal(written(tmp_path, problems=PROBLEMS, base=BASE, grpo=grpo))
    grpo["engine"] = {"steps": 4, "max_completion_tokens": 8}
    grpo["rewards"] = {"accuracy": 0}
    assert "accuracy and format are both 0" in refusal(written(tmp_path, problems=PROBLEMS, base=BASE, grpo=grpo))


def test_the_resolved_recipe_is_the_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, problems=PROBLEMS, base=BASE, s=SCORES, generate=GENERATE, curate=curate("generate"))
    recipe = load_recipe(path, ["seed=7"])
    save_resolved(recipe, tmp_path / "resolved.json")
    assert load_resolved(tmp_path / "resolved.json") == recipe
    assert load_resolved(tmp_path / "resolved.json").order() == recipe.order()


def test_a_resolved_recipe_of_another_version_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "resolved.json").write_text('{"name": "x", "stages": {"p": {"type": "old"}}}')
    with pytest.raises(
        RequestError, match=r"resolved\.json: stages\.p\.type: found 'old', which does not exist; choose"
    ):
        load_resolved(tmp_path / "resolved.json")
    assert Recipe.model_fields["seed"].default == 0
