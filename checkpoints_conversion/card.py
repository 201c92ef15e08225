"""The model card of an export whose source carries none: what is known of the model, and nothing else."""

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from checkpoints_conversion.assembly import Assembly
from checkpoints_conversion.dtypes import WEIGHTS
from checkpoints_conversion.huggingface import HuggingFace
from reasonforge import __version__

CARD = "README.md"

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def model_card(model: HuggingFace, config: dict[str, Any], tensors: Iterable[Assembly], origin: str) -> str:
    """The card, as Markdown below the front matter that the Hugging Face hub reads.

    Args:
        config: what the model's config.json says; the model that it names, if it has a hub's name, is the base.
        tensors: the weights as they are in the export.
        origin: what it was made from, in a few words.
    """
    tensors = list(tensors)
    parameters = sum(math.prod(tensor.shape) for tensor in tensors)
    types = sorted({WEIGHTS[tensor.dtype] for tensor in tensors})
    base = config.get("_name_or_path")
    known = isinstance(base, str) and _HUB_NAME.fullmatch(base) is not None
    spec, name = model.spec, model.spec.architecture
    name = name if name.isidentifier() else model.family.architecture
    lines = [
        "---",
        *([f"base_model: {json.dumps(base)}"] if known else []),
        "library_name: transformers",
        "tags:",
        *(f"- {tag}" for tag in (model.family.model_type, "megatron", "reasonforge")),
        "---",
        "",
        f"# {name}, {parameters:,} parameters",
        "",
        f"Converted from {origin} by reasonforge {__version__}. This card was made by the conversion and says what the "
        "checkpoint says of itself; it does not know how the model was trained, on what, or what its licence is.",
        "",
        "| | |",
        "|---|---|",
        *([f"| base model | {base} |"] if known else []),
        f"| architecture | {name} |",
        f"| parameters | {parameters:,} |",
        f"| type of the weights | {', '.join(types)} |",
        f"| layers, hidden size, vocabulary | {spec.layers}, {spec.hidden}, {spec.vocabulary} |",
    ]
    return "\n".join(lines) + "\n"
