"""Export: a Megatron checkpoint becomes a Hugging Face model. `cli` and the stage `export_checkpoint` call it."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from checkpoints_conversion import megatron
from checkpoints_conversion.assembly import PAGE_BYTES, Assembly, Files
from checkpoints_conversion.card import CARD, model_card
from checkpoints_conversion.casting import cast, retyped, target_type
from checkpoints_conversion.copying import Write
from checkpoints_conversion.dtypes import WEIGHTS
from checkpoints_conversion.families import family_of
from checkpoints_conversion.huggingface import CONFIG, INDEX, SINGLE, HuggingFace, companions
from checkpoints_conversion.publishing import Job, Outcome, fingerprint, publish
from checkpoints_conversion.safetensors import render_header
from checkpoints_conversion.spec import read_spec
from checkpoints_conversion.tasks import ALONE, Task
from checkpoints_conversion.torch_dist import COMMON, METADATA
from reasonforge.errors import RequestError
from reasonforge.files import read_json, write_atomic, write_json
from reasonforge.progress import Progress

MAX_SHARD_BYTES = 5 * 10**9
"""The size of shard that transformers itself aims at."""


def export_checkpoint(
    source: Path,
    destination: Path,
    reference: Path | None,
    max_shard_bytes: int,
    workers: int,
    progress: Callable[[int], Progress],
    *,
    dtype: str | None = None,
    task: Task = ALONE,
) -> Outcome:
    """Convert what training left at any parallelism; every weight's bits are kept, unless a type is given.

    Args:
        reference: a directory with the model's config.json, tokenizer and templates; None takes what the checkpoint
            carries.
        max_shard_bytes: tensors go to the next file where this would be passed.
        progress: makes the counter of bytes, given their number.
        dtype: torch's name of the type to which every weight is rounded; None keeps each one's own.
        task: which part this process does.
    Raises RequestError on a checkpoint that is damaged or of another model, where a weight has no place in the type,
    and where the result cannot be published.
    """
    target = target_type(dtype)
    checkpoint = megatron.open_megatron(source)
    model = reference_model(checkpoint.place, reference)
    with Files() as files:
        assemblies = megatron.find_tensors(checkpoint, model, files)
    shards = split([retyped(assembly, target) for assembly in assemblies.values()], max_shard_bytes)
    headers = {name: shard_header(shard) for name, shard in shards.items()}
    inputs = sorted({fragment.file for assembly in assemblies.values() for fragment in assembly.fragments})
    weights = checkpoint.place.weights
    small = [path for path in (weights / METADATA, weights / COMMON) if path.is_file()]
    identity: dict[str, Any] = {
        "conversion": "export",
        "family": model.family.model_type,
        "options": {"max_shard_bytes": max_shard_bytes, "dtype": dtype},
        "iteration": checkpoint.place.iteration,
        "source": fingerprint([*inputs, *small], source),
        "reference": fingerprint(companions(model.path), model.path),
    }
    sizes = {name: len(headers[name]) + sum(item.bytes for item in shard) for name, shard in shards.items()}

    def finish(tree: Path) -> None:
        write_beside(tree, model, shards, headers)
        _write_card(tree, model, shards, checkpoint.place)

    writes = [cast(write, assemblies[write.assembly.label].dtype) for write in _writes(shards, headers)]
    return publish(Job(destination, identity, sizes, writes, finish), workers, progress, task)


def reference_model(place: megatron.Place, reference: Path | None) -> HuggingFace:
    """The model that a checkpoint is of, without its weights. Raises RequestError where nothing says which it is."""
    path = reference or megatron.carried_model(place)
    if path is None:
        raise RequestError(
            str(place.root),
            "it does not carry its model's config.json",
            "give the model it was trained from with --reference DIR",
        )
    if not (path / CONFIG).is_file():
        raise RequestError(str(path), "no config.json, so no Hugging Face model")
    spec = read_spec(path / CONFIG)
    return HuggingFace(path, spec, family_of(spec, path / CONFIG), {}, ())


def split(assemblies: Iterable[Assembly], max_shard_bytes: int) -> dict[str, list[Assembly]]:
    """Tensors in their order into files, by name: one file, or as many as transformers would name and number.

    Within a file the tensors of whole pages come first, so that all of those begin on a page.
    """
    shards: list[list[Assembly]] = [[]]
    size = 0
    for assembly in assemblies:
        if shards[-1] and size + assembly.bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(assembly)
        size += assembly.bytes
    for shard in shards:
        shard.sort(key=lambda item: item.bytes % PAGE_BYTES != 0)
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard for number, shard in enumerate(shards, 1)}


def shard_header(shard: Iterable[Assembly]) -> bytes:
    """The header of a file of these tensors."""
    return render_header({item.label: (item.dtype, item.shape) for item in shard}, {"format": "pt"}, PAGE_BYTES)


def _writes(shards: dict[str, list[Assembly]], headers: dict[str, bytes]) -> list[Write]:
    writes = []
    for name, shard in shards.items():
        offset = len(headers[name])
        for assembly in shard:
            writes.append(Write(assembly, name, offset))
            offset += assembly.bytes
    return writes


def write_beside(tree: Path, model: HuggingFace, shards: dict[str, list[Assembly]], headers: dict[str, bytes]) -> None:
    """Write the headers, the index, and what travels along."""
    for name, header in headers.items():
        with open(tree / name, "r+b") as handle:
            handle.write(header)
    if len(shards) > 1:
        total = sum(assembly.bytes for shard in shards.values() for assembly in shard)
        places = {assembly.label: name for name, shard in shards.items() for assembly in shard}
        write_json(tree / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})
    for path in companions(model.path):
        target = tree / path.relative_to(model.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    _state_dtype(tree / CONFIG, next(iter(shards.values()))[0].dtype)


def _write_card(tree: Path, model: HuggingFace, shards: dict[str, list[Assembly]], place: megatron.Place) -> None:
    """Write a model card where none travels along."""
    if (tree / CARD).exists():
        return
    number = "" if place.iteration is None else f", iteration {place.iteration}"
    origin = f"a {_KINDS.get(place.kind, place.kind)} checkpoint{number}"
    tensors = [tensor for shard in shards.values() for tensor in shard]
    write_atomic(tree / CARD, model_card(model, read_json(tree / CONFIG), tensors, origin))


_KINDS = {"megatron": "Megatron-LM", "nemo": "NeMo 2", "bridge": "Megatron-Bridge"}


def _state_dtype(path: Path, dtype: str) -> None:
    """Let config.json name the type that the weights have, where it names another; else its bytes stay."""
    config = read_json(path)
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    if config.get(key) != WEIGHTS[dtype]:
        write_atomic(path, json.dumps({**config, key: WEIGHTS[dtype]}, indent=2, ensure_ascii=False) + "\n")
