"""Opens Megatron checkpoints, wherever Megatron-LM, NeMo 2 or Megatron-Bridge left the weights.

`exporting`, `inspection` and `verification` read them so; `directories` writes them.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from checkpoints_conversion.assembly import Assembly, Files
from checkpoints_conversion.families.table import tensors
from checkpoints_conversion.geometry import Stored, export_assemblies
from checkpoints_conversion.huggingface import CONFIG, HuggingFace
from checkpoints_conversion.torch_dist import BACKEND, METADATA, TorchDist, open_torch_dist
from reasonforge.errors import RequestError

Kind = Literal["megatron", "nemo", "bridge"]

TRACKER = "latest_checkpointed_iteration.txt"
CARRIED = "huggingface"
"""Where an imported checkpoint keeps the model's configuration and tokenizer, so that an export needs nothing else."""
CONTEXT = "context"
NEMO_TOKENIZER = "nemo_tokenizer"
"""Below `CONTEXT`: the directory that NeMo copies from the checkpoint it started with into every one that it saves."""

_ITERATION = re.compile(r"iter_(\d{7,})")


@dataclass(frozen=True)
class Place:
    """Where a checkpoint's weights are."""

    root: Path
    weights: Path
    kind: Kind
    iteration: int | None


def is_whole(directory: Path) -> bool:
    """Whether a torch_dist directory was finished: its metadata is written after everything else."""
    return (directory / METADATA).is_file() and (directory / BACKEND).is_file()


def find_weights(root: Path) -> Place | None:
    """Find the weights below a directory, in the last complete iteration where there are several; None without any.

    Raises RequestError where all that is there was interrupted while it was saved.
    """
    if is_whole(root):
        found = _ITERATION.fullmatch(root.name)
        return Place(root, root, _kind(root), int(found[1]) if found else None)
    if is_whole(root / "weights"):
        return Place(root, root / "weights", "nemo", None)
    if not root.is_dir():
        return None
    numbered = [(int(found[1]), path) for path in root.iterdir() if (found := _ITERATION.fullmatch(path.name))]
    whole = sorted((number, path) for number, path in numbered if is_whole(path))
    if whole:
        number, path = whole[-1]
        return Place(root, path, _kind(path), number)
    if is_whole(root / "release"):
        return Place(root, root / "release", _kind(root / "release"), None)
    if numbered or (root / TRACKER).exists() or (root / "weights").is_dir():
        raise RequestError(
            str(root), f"no iteration with {METADATA} and {BACKEND}, so no finished checkpoint", "save it again"
        )
    return None


def _kind(weights: Path) -> Kind:
    return "bridge" if (weights / "run_config.yaml").is_file() else "megatron"


@dataclass(frozen=True)
class Megatron:
    """An opened checkpoint."""

    place: Place
    state: TorchDist


def open_megatron(root: Path) -> Megatron:
    """Open a checkpoint by its metadata. Raises RequestError where there is none."""
    place = find_weights(root)
    if place is None:
        raise RequestError(
            str(root),
            f"no Megatron checkpoint: neither {METADATA} nor weights/ nor iter_* is there",
            "give the directory that holds them",
        )
    return Megatron(place, open_torch_dist(place.weights))


def carried_model(place: Place) -> Path | None:
    """The directory with the model's config.json that travels in a checkpoint; None where there is none."""
    root = place.root.parent if place.root == place.weights else place.root
    context = root / CONTEXT
    choices = (root / CARRIED, place.weights / CARRIED, context / CARRIED, context / NEMO_TOKENIZER)
    return next((path for path in choices if (path / CONFIG).is_file()), None)


def find_tensors(checkpoint: Megatron, model: HuggingFace, files: Files) -> dict[str, Assembly]:
    """What each Hugging Face tensor of a model is made of in a checkpoint.

    Raises RequestError where a tensor is missing or of another shape, or where an output layer of its own was trained
    although the model's is tied to its embedding.
    """
    spellings = {te: (te, local) for te, local in model.family.local_keys}
    stored: list[Stored] = []
    for tensor in tensors(model.family, model.spec, 1):
        found = checkpoint.state.stored(tensor, spellings.get(tensor.key, (tensor.key,)), files)
        if found is None:
            raise checkpoint.state.error(f"no {tensor.label}")
        stored.append(found)
    if model.spec.tied and ("output_layer.weight", ()) in checkpoint.state.places:
        raise checkpoint.state.error("it has an output layer of its own, but config.json says tie_word_embeddings")
    return export_assemblies(stored)
