"""What a checkpoint is, without reading a weight: `convert inspect`."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from checkpoints_conversion import megatron
from checkpoints_conversion.contents import open_contents
from checkpoints_conversion.huggingface import companions
from reasonforge.errors import RequestError

_EXPECTED = {
    "tokenizer": ("tokenizer.json", "tokenizer.model", "vocab.json"),
    "tokenizer_config.json": ("tokenizer_config.json",),
    "generation_config.json": ("generation_config.json",),
}
"""What a model should have beside its weights, and the files that would be it."""


def inspect(path: Path, reference: Path | None) -> dict[str, Any]:
    """Format, family, shape, parameters, types, files and missing parts, as JSON values.

    A Megatron checkpoint that does not carry its model's configuration is described by its own keys.
    """
    try:
        contents = open_contents(path, reference)
    except RequestError:
        place = megatron.find_weights(path) if path.is_dir() else None
        if place is None or reference is not None or megatron.carried_model(place) is not None:
            raise
        return _by_keys(path)
    spec = contents.model.spec
    items = contents.tensors.values()
    files = sorted({fragment.file for item in items for fragment in item.fragments})
    beside = {found.name for found in companions(contents.model.path)}
    return {
        "path": str(path),
        "format": contents.format,
        "family": contents.model.family.model_type,
        "iteration": contents.iteration,
        "parameters": sum(math.prod(item.shape) for item in items),
        "bytes": sum(item.bytes for item in items),
        "dtypes": dict(Counter(item.dtype for item in items)),
        "tensors": len(contents.tensors),
        "layers": spec.layers,
        "hidden": spec.hidden,
        "heads": spec.heads,
        "groups": spec.groups,
        "vocabulary": spec.vocabulary,
        "experts": spec.experts,
        "tied_embeddings": spec.tied,
        "shards": [file.name for file in files],
        "missing": [part for part, choices in _EXPECTED.items() if not beside & set(choices)],
    }


def _by_keys(path: Path) -> dict[str, Any]:
    checkpoint = megatron.open_megatron(path)
    tensors = [
        tensor
        for tensor in checkpoint.state.metadata.tensors.values()
        if not tensor.key.startswith(("optimizer.", "chained_"))
    ]
    return {
        "path": str(path),
        "format": checkpoint.place.kind,
        "family": None,
        "iteration": checkpoint.place.iteration,
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "dtypes": dict(Counter(tensor.dtype for tensor in tensors)),
        "tensors": len(tensors),
        "shards": sorted({chunk.record.file for tensor in tensors for chunk in tensor.chunks}),
        "missing": ["config.json: name the model with --reference"],
    }
