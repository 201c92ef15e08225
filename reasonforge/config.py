"""Typed configuration: the base class of all configuration types, and errors that name file, line and key."""

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from reasonforge.document import Document, KeyPath, from_overrides, read_document
from reasonforge.errors import RequestError, nearest


class Strict(BaseModel):
    """The base of every configuration type: frozen, strict about types, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


ModelT = TypeVar("ModelT", bound=Strict)


class Operational:
    """Marks a field that changes how the work is done but not what comes out: workers, concurrency, logging.

    Write `workers: Annotated[int, Operational()] = 2`; `key_config` leaves such a field out of the stage key.
    """


def key_config(model: BaseModel) -> dict[str, Any]:
    """The part of a configuration that decides the output of its stage, as plain JSON values."""
    fields = type(model).model_fields
    return {
        name: _plain(getattr(model, name))
        for name, field in fields.items()
        if not any(isinstance(item, Operational) for item in field.metadata)
    }


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return key_config(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def load(model: type[ModelT], path: Path, overrides: Sequence[str] = ()) -> ModelT:
    """Read a YAML file with its base and overrides into a model; RequestError has a line for each mistake."""
    return validate(model, read_document(path, overrides))


def load_options(model: type[ModelT], path: Path | None, overrides: Sequence[str]) -> ModelT:
    """As `load`, where the file may be left out and all may stand in the overrides."""
    return load(model, path, overrides) if path is not None else validate(model, from_overrides(overrides))


def validate(model: type[ModelT], document: Document) -> ModelT:
    """Check a document against its type; RequestError has a line for each mistake."""
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        problems = [_explain(model, document, detail) for detail in error.errors(include_url=False)]
    first, *others = problems
    if others:
        first.args = ("\n".join(map(str, problems)),)
    raise first


def _explain(model: type[Strict], document: Document, detail: ErrorDetails) -> RequestError:
    """One pydantic error as a line of ours: the key as the user wrote it, what was found, what would be right."""
    path, owner, tags = _written_path(model, detail["loc"])
    where = document.where(path)
    kind, found, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        known = list(owner.model_fields) if owner else []
        return RequestError(where, f"unknown key {path[-1]!r}", nearest(str(path[-1]), known))
    if kind == "missing":
        return RequestError(where, "missing", "it has no default, so it must be given")
    if kind == "union_tag_not_found":
        return RequestError(where, "no 'type' is given", f"choose one of: {', '.join(tags)}")
    if kind == "union_tag_invalid":
        tag = str(context.get("tag"))
        return RequestError(document.where((*path, "type")), f"found {tag!r}, which does not exist", nearest(tag, tags))
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return RequestError(where, f"found {_short(found)}", "a mapping of keys is needed")
    if kind == "value_error":
        return RequestError(where, str(context["error"]))
    return RequestError(where, f"found {_short(found)}", detail["msg"][:1].lower() + detail["msg"][1:])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _written_path(
    model: type[BaseModel], location: Sequence[str | int]
) -> tuple[KeyPath, type[BaseModel] | None, list[str]]:
    """A pydantic location without the parts that nobody wrote, the model that owns its last key, and, where the
    location is a union, the types to choose from."""
    written: list[str | int] = []
    annotation: Any = model
    owner: type[BaseModel] | None = None
    for part in location:
        if part == "[key]":  # pydantic's way to say that the key itself is wrong
            continue
        members = _models(annotation)
        chosen = [member for member in members if part in _tags_of(member)]
        if len(members) > 1 and chosen:
            annotation = chosen[0]
            continue
        written.append(part)
        owner = members[0] if len(members) == 1 else None
        if owner is not None:
            field = owner.model_fields.get(str(part))
            annotation = field.annotation if field else None
        else:
            annotation = next(iter(get_args(_bare(annotation))[-1:]), None)
    return tuple(written), owner, [tag for member in _models(annotation) for tag in _tags_of(member)]


def _bare(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The model classes that an annotation allows directly: itself, or the members of a union."""
    annotation = _bare(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return [found for member in get_args(annotation) for found in _models(member)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def _tags_of(model: type[BaseModel]) -> tuple[Any, ...]:
    field = model.model_fields.get("type")
    return get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()
