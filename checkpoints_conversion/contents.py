"""Any checkpoint, of either format, as the Hugging Face tensors it holds. `verification` and `inspection` read it."""

from dataclasses import dataclass
from pathlib import Path

from checkpoints_conversion import megatron
from checkpoints_conversion.assembly import Assembly, Files
from checkpoints_conversion.exporting import reference_model
from checkpoints_conversion.huggingface import CONFIG, HuggingFace, open_huggingface
from checkpoints_conversion.importing import ImportOptions, model_chunks
from reasonforge.errors import RequestError


@dataclass(frozen=True)
class Contents:
    """A checkpoint's model, and what each of its tensors is made of, by its Hugging Face name."""

    path: Path
    format: str
    """"huggingface", "megatron", "nemo" or "bridge"."""
    model: HuggingFace
    tensors: dict[str, Assembly]
    iteration: int | None = None
    checkpoint: megatron.Megatron | None = None
    """None for a Hugging Face model."""


def open_contents(path: Path, reference: Path | None = None) -> Contents:
    """Open a checkpoint of either format, and check its tensors' names and shapes against its configuration.

    Args:
        reference: a Hugging Face directory that says what a Megatron checkpoint is of, where it does not say so itself.
    Raises RequestError where it is neither, or not whole.
    """
    if not path.is_dir():
        raise RequestError(str(path), "no such directory")
    place = megatron.find_weights(path)
    if place is None and (path / CONFIG).is_file():
        model = open_huggingface(path)
        model_chunks(model, ImportOptions())
        return Contents(path, "huggingface", model, {name: model.assembly(name) for name in sorted(model.tensors)})
    if place is None:
        raise RequestError(str(path), "neither a Hugging Face model nor a Megatron checkpoint")
    checkpoint = megatron.open_megatron(path)
    model = reference_model(checkpoint.place, reference)
    with Files() as files:
        tensors = megatron.find_tensors(checkpoint, model, files)
    return Contents(path, place.kind, model, dict(sorted(tensors.items())), place.iteration, checkpoint)


def is_huggingface(path: Path) -> bool:
    """Whether a directory has a configuration and no Megatron weights."""
    return (path / CONFIG).is_file() and megatron.find_weights(path) is None
