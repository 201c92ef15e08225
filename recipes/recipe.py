"""A recipe: the stages of a run by name, and the checks that make them a graph before anything runs."""

import re
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from reasonforge.artifacts import ArtifactKind
from reasonforge.config import Strict, validate
from reasonforge.document import Document, read_document
from reasonforge.errors import RequestError, nearest
from reasonforge.files import read_json, write_json
from recipes.stage import InputRef, Stage
from recipes.stages import AnyStage
from recipes.stages.distill import DistillStage

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

_CONVERTED_BY: dict[tuple[ArtifactKind, ArtifactKind], str] = {
    ("hf_checkpoint", "megatron_checkpoint"): "import_checkpoint",
    ("megatron_checkpoint", "hf_checkpoint"): "export_checkpoint",
}


class Recipe(Strict):
    """The model, the stages and their options. It says nothing about a cluster."""

    name: str = Field(pattern=_NAME)
    """What the run is called unless it is given another name."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Where all the randomness of the run comes from."""
    stages: dict[Annotated[str, Field(pattern=_NAME)], AnyStage] = Field(min_length=1)
    """The stages by name; each names its input artifacts by the stages that make them."""

    def order(self) -> list[str]:
        """The stages' names, inputs before what needs them; among equals, as the recipe has them."""
        sorter = TopologicalSorter({name: [ref.stage for ref in stage.input_refs()] for name, stage in self._items()})
        sorter.prepare()
        rank = {name: index for index, name in enumerate(self.stages)}
        ready, order = sorted(sorter.get_ready(), key=rank.__getitem__), []
        while ready:
            name = ready.pop(0)
            order.append(name)
            sorter.done(name)
            ready = sorted([*ready, *sorter.get_ready()], key=rank.__getitem__)
        return order

    def ancestors(self, name: str) -> set[str]:
        """Every stage whose output reaches a stage."""
        direct = {ref.stage for ref in self.stages[name].input_refs()}
        return direct.union(*(self.ancestors(stage) for stage in direct))

    def _items(self) -> list[tuple[str, Stage]]:
        return list(self.stages.items())


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, lay it over its base, apply `--set` overrides, and check it and its graph.

    Raises RequestError: unknown keys, wrong types, an input that no stage makes or that is of another kind, a cycle.
    """
    document = read_document(path, overrides)
    recipe = validate(Recipe, document)
    _check_inputs(recipe, document)
    for name, stage in recipe.stages.items():
        try:
            stage.check_inputs(recipe.stages)
        except ValueError as error:
            raise RequestError(document.where(("stages", name)), str(error)) from None
    try:
        recipe.order()
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise RequestError(
            document.where(("stages", error.args[1][0])),
            f"stages need each other in a circle: {circle}",
            "let one of them take its input from elsewhere",
        ) from None
    return recipe


def check_run_name(name: str) -> None:
    """Raises RequestError for a run's name that is not fit to be a directory's."""
    if not re.fullmatch(_NAME, name):
        raise RequestError(
            f"--name {name}", "not fit for a directory", "use letters, digits, '.', '_' and '-', no '.' or '-' first"
        )


def save_resolved(recipe: Recipe, path: Path) -> None:
    """Publish the recipe with every default filled in, as the stages of a run will read it."""
    write_json(path, recipe.model_dump(mode="json"))


def load_resolved(path: Path) -> Recipe:
    """Read back what `save_resolved` wrote."""
    data = read_json(path)
    try:
        return Recipe.model_validate(data)
    except ValidationError:
        return validate(Recipe, Document(str(path), data, {}))


def _check_inputs(recipe: Recipe, document: Document) -> None:
    for name, stage in recipe.stages.items():
        for ref in stage.input_refs():
            where = document.where(("stages", name, "inputs", *ref.name.split(".")))
            made_by = recipe.stages.get(ref.stage)
            if made_by is None:
                raise RequestError(
                    where,
                    f"found {ref.stage!r}, but no stage of that name makes anything",
                    nearest(ref.stage, recipe.stages),
                )
            if made_by.kind not in (ref.kind, *ref.others):
                raise _unfit(recipe, where, stage, ref, made_by.kind)


def _unfit(recipe: Recipe, where: str, stage: Stage, ref: InputRef, made: ArtifactKind) -> RequestError:
    """The error of an input of another kind than the stage takes."""
    if (made, ref.kind) in _CONVERTED_BY:
        engine = f" with engine {stage.engine.type}" if isinstance(stage, DistillStage) else ""
        return RequestError(
            where,
            f"{ref.stage} makes {made}, but {stage.type} takes {ref.kind}{engine}",
            f"put an {_CONVERTED_BY[made, ref.kind]} stage between",
        )
    fitting = [other for other, candidate in recipe.stages.items() if candidate.kind == ref.kind]
    return RequestError(
        where,
        f"{ref.stage} makes {made}, but {ref.kind} is needed",
        f"{ref.kind} is made by: {', '.join(fitting) or 'no stage of this recipe'}",
    )
