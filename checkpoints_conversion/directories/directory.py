"""What a framework's checkpoint directory is made of: where the weights lie in it, and what stands beside them."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints_conversion.huggingface import HuggingFace, companions


@dataclass(frozen=True)
class Imported:
    """The facts about an imported model that its directory tells."""

    model: HuggingFace
    dtype: str
    """torch's name of the weights' type."""
    vocabulary_multiple: int
    padded_vocabulary: int


@dataclass(frozen=True)
class Directory:
    """How one framework lays out a checkpoint."""

    weights: str
    """Where the torch_dist files go, below the checkpoint's directory."""
    prefix: str
    """What its keys begin with."""
    vocabulary_multiple: int
    """To a multiple of what the vocabulary is padded where nothing is said."""
    common: Callable[[Imported], Mapping[str, Any]]
    """The content of `common.pt`."""
    write: Callable[[Path, Imported], None]
    """Writes the small files into the checkpoint's directory; the weights are there already."""


def carry(model: HuggingFace, target: Path) -> None:
    """Copy the model's own small files (configuration, tokenizer, templates, card) into a directory."""
    for path in companions(model.path):
        place = target / path.relative_to(model.path)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
