"""Which Python runs a stage, and what `doctor` says of it."""

import json
import sys
from pathlib import Path

import pytest
from desk import Desk

from recipes import interpreters
from recipes.interpreters import interpreter, variables_for
from recipes.recipe import Recipe

RECIPE = """\
base: cheap.yaml
stages:
  base: {type: base_model, inputs: {problems: problems}, source: {type: scratch}}
  tokens: {type: tokenize, inputs: {dataset: curate, model: base}, max_tokens: 99}
  import: {type: import_checkpoint, inputs: {model: base}, directory: nemo}
  distill: {type: distill, inputs: {model: import, tokens: tokens}, engine: {type: nemo, steps: 1}}
"""


def stage(engine: str) -> object:
    distill = {"type": "distill", "inputs": {"model": "m", "tokens": "t"}, "engine": {"type": engine, "steps": 1}}
    return Recipe.model_validate({"name": "r", "stages": {"distill": distill}}).stages["distill"]


def test_an_environment_of_its_own_is_named_or_made_by_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreters, "ROOT", tmp_path)
    assert interpreter(None, {"REASONFORGE_NEMO_PYTHON": "/other/python"}) == sys.executable
    assert interpreter("nemo", {}) == sys.executable
    made = tmp_path / ".venv-nemo/bin/python"
    made.parent.mkdir(parents=True)
    made.touch()
    assert interpreter("nemo", {}) == str(made)
    assert interpreter("nemo", {"REASONFORGE_NEMO_PYTHON": "/other/python"}) == "/other/python"
    assert interpreter("bridge", {"REASONFORGE_NEMO_PYTHON": "/other/python"}) == sys.executable
    assert interpreter("bridge", {"REASONFORGE_BRIDGE_PYTHON": "/third/python"}) == "/third/python"


def test_another_python_finds_the_source_tree_but_no_installed_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = {"REASONFORGE_NEMO_PYTHON": "/other/python", "PYTHONPATH": "/mine"}
    monkeypatch.setattr(interpreters, "ROOT", tmp_path)
    assert variables_for(stage("nemo"), elsewhere) == elsewhere  # type: ignore[arg-type]
    (tmp_path / "pyproject.toml").touch()
    assert variables_for(stage("nemo"), elsewhere)["PYTHONPATH"] == f"{tmp_path}:/mine"  # type: ignore[arg-type]
    assert variables_for(stage("trl"), elsewhere) == elsewhere  # type: ignore[arg-type]


def test_doctor_asks_the_python_that_would_run_the_stage(desk: Desk) -> None:
    desk.write("r.yaml", RECIPE)
    found = json.loads(desk("doctor", "r.yaml", "--json", REASONFORGE_NEMO_PYTHON="/no/such/python").stdout)
    assert found["interpreters"] == {"distill": "/no/such/python"}
    assert {"reasonforge", "nemo", "megatron.core"} <= set(found["lacking"]["distill"])
    assert found["lacking"]["base"] == []
    text = desk("doctor", "r.yaml", REASONFORGE_NEMO_PYTHON="/no/such/python")
    assert text.returncode == 1
    assert "stage distill: lacks reasonforge, " in text.stdout
    assert " in /no/such/python\n" in text.stdout
    ours = json.loads(desk("doctor", "r.yaml", "--json", REASONFORGE_NEMO_PYTHON=sys.executable).stdout)
    assert "torch" not in ours["lacking"]["distill"]
    assert "nemo" in ours["lacking"]["distill"]
