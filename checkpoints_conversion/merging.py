"""Weighted averages of models of one shape, streamed: `convert merge`.

Balanced Actor Initialization merges an instruction model with a distilled one, and both with their base.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from checkpoints_conversion.copying import Write
from checkpoints_conversion.exporting import MAX_SHARD_BYTES, shard_header, split, write_beside
from checkpoints_conversion.floats import averaging
from checkpoints_conversion.huggingface import HuggingFace, companions, open_huggingface
from checkpoints_conversion.importing import ImportOptions, model_chunks
from checkpoints_conversion.publishing import Job, Outcome, fingerprint, publish
from reasonforge.errors import RequestError
from reasonforge.progress import Progress


def merge(
    sources: Sequence[tuple[Path, float]], destination: Path, workers: int, progress: Callable[[int], Progress]
) -> Outcome:
    """Average Hugging Face models; configuration and tokenizer are those of the first.

    Each number is the sum of weight times number in float64, rounded once to the models' own type.

    Args:
        sources: directories and their weights, which add up to 1.
    Raises RequestError where the weights do not, or the models differ in a tensor's name, shape or type.
    """
    total = math.fsum(weight for _, weight in sources)
    if len(sources) < 2 or not math.isclose(total, 1.0, abs_tol=1e-9):
        raise RequestError("merge", f"the {len(sources)} weights add up to {total:g}", "two or more that add up to 1")
    models = [open_huggingface(path) for path, _ in sources]
    first = models[0]
    model_chunks(first, ImportOptions())
    for model in models[1:]:
        _check_alike(first, model)
    weights = tuple(weight for _, weight in sources)
    shards = split([first.assembly(name) for name in sorted(first.tensors)], MAX_SHARD_BYTES)
    headers = {name: shard_header(shard) for name, shard in shards.items()}
    writes = []
    for name, shard in shards.items():
        offset = len(headers[name])
        for item in shard:
            others = tuple(model.assembly(item.label) for model in models[1:])
            writes.append(Write(item, name, offset, others=others, combine=averaging(item.dtype, weights)))
            offset += item.bytes
    identity = {
        "conversion": "merge",
        "family": first.family.model_type,
        "options": {"weights": list(weights)},
        "sources": [fingerprint([*model.shards, *companions(model.path)], model.path) for model in models],
    }
    sizes = {name: len(headers[name]) + sum(item.bytes for item in shard) for name, shard in shards.items()}

    def finish(tree: Path) -> None:
        write_beside(tree, first, shards, headers)

    return publish(Job(destination, identity, sizes, writes, finish), workers, progress)


def _check_alike(first: HuggingFace, other: HuggingFace) -> None:
    for name in sorted(set(first.tensors) ^ set(other.tensors)):
        owner, lacking = (first, other) if name in first.tensors else (other, first)
        raise RequestError(str(lacking.path), f"no tensor {name}, which {owner.path} has", "merge models of one shape")
    for name, tensor in first.tensors.items():
        found = other.tensors[name]
        if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            raise RequestError(
                str(other.path),
                f"{name} is {found.dtype} {list(found.shape)}, but {tensor.dtype} {list(tensor.shape)} in {first.path}",
                "merge models of one shape and type",
            )
