"""Hugging Face model directories: the tensors of their shards, checked against the index, and the files beside them."""

from dataclasses import dataclass
from pathlib import Path

from checkpoints_conversion.assembly import Assembly, Fragment
from checkpoints_conversion.families import family_of
from checkpoints_conversion.families.table import Family
from checkpoints_conversion.safetensors import Tensor, read_header
from checkpoints_conversion.spec import ModelSpec, read_spec
from checkpoints_conversion.untrusted import check_inside, read_json, told
from reasonforge.errors import RequestError

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template*", "additional_chat_templates/*", "README.md", "LICENSE*", "NOTICE*",
    "USE_POLICY*",
)  # fmt: skip
"""What travels with the weights: configuration, tokenizer, chat template, generation settings, card and licence."""


@dataclass(frozen=True)
class HuggingFace:
    """An opened model directory."""

    path: Path
    spec: ModelSpec
    family: Family
    tensors: dict[str, Tensor]
    shards: tuple[Path, ...]

    def assembly(self, name: str) -> Assembly:
        """A tensor as one fragment. Raises KeyError where there is none."""
        found = self.tensors[name]
        size = found.bytes
        return Assembly(name, found.dtype, found.shape, (Fragment(found.file, found.offset, 0, 1, size, size, size),))


def open_huggingface(directory: Path) -> HuggingFace:
    """Open a model directory without reading a weight.

    Raises RequestError where there is no model, no map for it, or its index and its shards disagree.
    """
    config = directory / CONFIG
    if not config.is_file():
        raise RequestError(str(directory), "no config.json, so no Hugging Face model")
    spec = read_spec(config)
    family = family_of(spec, config)
    tensors, shards = read_weights(directory)
    return HuggingFace(directory, spec, family, tensors, shards)


def read_weights(directory: Path) -> tuple[dict[str, Tensor], tuple[Path, ...]]:
    """Every tensor of a directory's shards, and the shards. Raises RequestError where index and shards disagree."""
    single, index = directory / SINGLE, directory / INDEX
    if not index.is_file():
        if not single.is_file():
            raise RequestError(str(directory), f"neither {SINGLE} nor {INDEX}, so no weights that convert")
        return read_header(single).tensors, (single,)
    places = _weight_map(index)
    shards = tuple(directory / name for name in sorted(set(places.values())))
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        for name, tensor in read_header(shard).tensors.items():
            if places.get(name) != shard.name:
                said = f"puts it in {told(places[name])}" if name in places else "does not list it"
                problem = f"{shard.name} holds {told(name)}, but the index {said}"
                raise RequestError(str(index), problem, "get both again")
            tensors[name] = tensor
    for name, place in places.items():
        if name not in tensors:
            problem = f"it puts {told(name)} into {told(place)}, which does not hold it"
            raise RequestError(str(index), problem, "get both again")
    return tensors, shards


def _weight_map(index: Path) -> dict[str, str]:
    found = read_json(index)
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not places:
        raise RequestError(str(index), "no weight_map, so no index of shards")
    for name, place in places.items():
        if not isinstance(place, str) or not place.endswith(".safetensors") or set(place) & set("/\\\0"):
            where = told(place) if isinstance(place, str) else "what is no name"
            raise RequestError(str(index), f"it puts {told(name)} into {where}, which is no file of this directory")
    return places


def companions(directory: Path) -> list[Path]:
    """The files that travel with the weights, sorted. Raises RequestError where one is a link out of the directory."""
    found = sorted({path for pattern in _COMPANIONS for path in directory.glob(pattern) if path.is_file()})
    for path in found:
        check_inside(path, directory)
    return found
