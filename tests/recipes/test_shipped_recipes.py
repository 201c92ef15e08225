"""Every recipe that ships loads, plans, and is its own resolved form."""

import json
import re
from pathlib import Path

import pytest
from desk import Desk

from recipes.doctor import missing_modules
from recipes.plan import make_plan
from recipes.recipe import load_recipe, load_resolved, save_resolved

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_it_is_good(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    plan = make_plan(recipe)
    made = set()
    for stage in plan["stages"]:
        assert set(stage["inputs"].values()) <= made
        made.add(stage["name"])
    assert made == set(recipe.stages)
    save_resolved(recipe, tmp_path / "recipe.json")
    assert load_resolved(tmp_path / "recipe.json") == recipe


@pytest.mark.parametrize("path", [path for path in SHIPPED if "tiny" in path.stem], ids=lambda path: path.stem)
def test_the_tiny_ones_run_here(path: Path) -> None:
    assert not any(missing_modules(load_recipe(path)).values())


def test_the_resolved_form_on_the_command_line(desk: Desk) -> None:
    for path in SHIPPED:
        resolved = desk.good("plan", str(path), "--resolved")
        desk.write("resolved.yaml", resolved)
        assert desk.good("plan", "resolved.yaml", "--json") == desk.good("plan", str(path), "--json")


def test_the_llama_recipe_differs_in_its_student_alone(desk: Desk) -> None:
    qwen, llama = (
        json.loads(desk.good("plan", str(path), "--resolved", "--json"))
        for path in sorted(SHIPPED, key=lambda path: "llama" in path.stem)
        if path.stem in ("distill-grpo-llama-tiny", "distill-grpo-qwen2-tiny")
    )
    assert llama["stages"]["base"]["source"]["model"].pop("family") == "llama"
    assert qwen["stages"]["base"]["source"]["model"].pop("family") == "qwen2"
    assert qwen.pop("name") != llama.pop("name")
    assert qwen == llama


SMALL = (
    "problems.source.train=200",
    "problems.source.eval=6",
    "base.source.training.steps=30",
    "distill.engine.steps=20",
    "grpo.engine.steps=2",
    "grpo.engine.updates=1",
    "grpo.engine.prompts=4",
    "grpo.engine.group_size=4",
    "grpo.engine.save_every=2",
    "evaluate-base.sampling.samples=2",
    "evaluate-distilled.sampling.samples=2",
    "evaluate-grpo.sampling.samples=2",
)


@pytest.mark.xdist_group("trl")
def test_the_whole_of_it_in_small(desk: Desk) -> None:
    path = next(path for path in SHIPPED if path.stem == "distill-grpo-llama-tiny")
    options = [item for option in SMALL for item in ("--set", f"stages.{option}")]
    *_, last = desk.good("run", str(path), "--name", "small", *options).splitlines()
    figure = r"\d+\.\d% \[\d+\.\d%, \d+\.\d%\]"
    assert re.fullmatch(
        rf"report: .*/runs/small/report/index\.html  pass@1: base {figure}; distilled {figure}; grpo {figure}", last
    )
    report = json.loads((desk.run("small") / "report" / "report.json").read_text())
    assert list(report["models"]) == ["base", "distilled", "grpo"]
    assert set(report["paired"]) == {"distilled-base", "grpo-distilled"}
    assert all(
        {"value", "low", "high"} <= entry["pass@1"].keys()
        for group in ("models", "paired")
        for entry in report[group].values()
    )
    before = desk.digests("small")
    again = desk.good("run", str(path), "--name", "small", *options)
    assert again.count("already done") == len(before) == 11
    assert again.splitlines()[-1] == last
    assert json.loads((desk.run("small") / "stages" / "grpo" / "config.json").read_text())["model_type"] == "llama"
