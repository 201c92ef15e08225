"""The plan: what a run of a recipe will do, stage by stage, with each stage's command. A pure function."""

from pathlib import Path
from typing import Any

from recipes.recipe import Recipe

RUN_DIRECTORY = Path("RUN_DIR")
"""Stands for the run directory in a plan, which does not depend on where the run will be."""


def stage_command(run_directory: Path, stage: str, python: str) -> list[str]:
    """The one command that does a stage, with some Python."""
    return [python, "-m", "recipes.run_stage", str(run_directory), stage]


def make_plan(recipe: Recipe) -> dict[str, Any]:
    """The stages in the order they can run, each with its type, engine, inputs, output kind and command."""
    return {"recipe": recipe.name, "seed": recipe.seed, "stages": [_entry(recipe, name) for name in recipe.order()]}


def _entry(recipe: Recipe, name: str) -> dict[str, Any]:
    stage = recipe.stages[name]
    engine = getattr(stage, "engine", None) or getattr(stage, "source", None)
    return {
        "name": name,
        "type": stage.type,
        "engine": getattr(engine, "type", None),
        "inputs": {ref.name: ref.stage for ref in stage.input_refs()},
        "kind": stage.kind,
        **({"environment": stage.environment} if stage.environment else {}),
        "command": stage_command(RUN_DIRECTORY, name, "python"),
    }
