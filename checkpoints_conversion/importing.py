"""Import: a Hugging Face model becomes a Megatron checkpoint. `cli` and the stage `import_checkpoint` call it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from checkpoints_conversion.assembly import Assembly
from checkpoints_conversion.casting import target_type
from checkpoints_conversion.directories import DIRECTORIES
from checkpoints_conversion.directories.directory import Imported
from checkpoints_conversion.dtypes import WEIGHTS
from checkpoints_conversion.families.table import MegatronTensor, extra_state_keys, tensors
from checkpoints_conversion.geometry import import_chunks
from checkpoints_conversion.huggingface import CONFIG, HuggingFace, companions, open_huggingface
from checkpoints_conversion.publishing import Job, Outcome, fingerprint, publish
from checkpoints_conversion.safetensors import Tensor
from checkpoints_conversion.spec import check_rope
from checkpoints_conversion.tasks import ALONE, Task
from checkpoints_conversion.torch_dist import lay_out
from checkpoints_conversion.untrusted import told
from reasonforge.errors import RequestError
from reasonforge.progress import Progress


@dataclass(frozen=True)
class ImportOptions:
    """How a Megatron checkpoint is written."""

    vocabulary_multiple: int | None = None
    """Embedding rows are padded with zeros to a multiple of this: --make-vocab-size-divisible-by, times TP. None takes
    what is usual for the directory."""
    directory: Literal["megatron", "nemo", "bridge"] = "megatron"
    """Whose directory is made: a name in `DIRECTORIES`."""
    layer_spec: Literal["te", "local"] = "te"
    """Whose spelling the keys have where Transformer Engine's layer spec and the local one differ (experts)."""
    dtype: str | None = None
    """torch's name of the type to which every weight is rounded; None keeps each one's own."""

    @property
    def multiple(self) -> int:
        """To a multiple of what the vocabulary is padded."""
        usual = DIRECTORIES[self.directory].vocabulary_multiple
        return usual if self.vocabulary_multiple is None else self.vocabulary_multiple


def import_checkpoint(
    source: Path,
    destination: Path,
    options: ImportOptions,
    workers: int,
    progress: Callable[[int], Progress],
    task: Task = ALONE,
) -> Outcome:
    """Convert a model directory; every weight's bits are kept, unless a type is given.

    Args:
        progress: makes the counter of bytes, given their number.
        task: which part this process does.
    Raises RequestError on a model that has no map or is damaged, where a weight has no place in the type, and where
    the result cannot be published.
    """
    target = target_type(options.dtype)
    multiple = options.multiple
    if multiple < 1:
        raise RequestError("--pad-vocabulary", f"found {multiple}", "a positive number is needed")
    model = open_huggingface(source)
    check_rope(source / CONFIG)
    chunks = model_chunks(model, options)
    directory = DIRECTORIES[options.directory]
    layout = lay_out(chunks, extra_state_keys(model.family, model.spec), directory.weights, directory.prefix, target)
    identity = {
        "conversion": "import",
        "family": model.family.model_type,
        "options": asdict(options) | {"vocabulary_multiple": multiple},
        "source": fingerprint([*model.shards, *companions(source)], source),
    }

    def finish(tree: Path) -> None:
        padded = model.spec.padded_vocabulary(multiple)
        imported = Imported(model, WEIGHTS[target or chunks[0][2].dtype], multiple, padded)
        layout.finish(tree / directory.weights, directory.common(imported))
        directory.write(tree, imported)

    return publish(Job(destination, identity, layout.sizes, layout.writes, finish), workers, progress, task)


def model_chunks(model: HuggingFace, options: ImportOptions) -> list[tuple[MegatronTensor, int, Assembly]]:
    """Every chunk of the Megatron model, as (tensor, first row, content).

    Raises RequestError on a tensor that is missing, of another shape or type, or that nothing uses.
    """
    used: set[str] = set()

    def source(name: str) -> Tensor:
        used.add(name)
        found = model.tensors.get(name)
        if found is None:
            raise RequestError(str(model.path), f"no tensor {name}, which {model.family.architecture} needs")
        if found.dtype not in WEIGHTS:
            raise RequestError(str(found.file), f"{name} is {found.dtype}", f"{', '.join(WEIGHTS)} convert")
        return found

    local = dict(model.family.local_keys) if options.layer_spec == "local" else {}
    chunks = [
        (replace(tensor, key=local.get(tensor.key, tensor.key)), row, assembly)
        for tensor in tensors(model.family, model.spec, options.multiple)
        for row, assembly in import_chunks(tensor, source)
    ]
    for name in model.tensors:
        if name not in used and not _is_derived(name, model):
            problem = f"{told(name)} has no place in {model.family.architecture}"
            raise RequestError(str(model.tensors[name].file), problem, "it would be lost")
    return chunks


def _is_derived(name: str, model: HuggingFace) -> bool:
    """Whether a tensor is only a copy or a table that the model's code makes itself."""
    return name.endswith("rotary_emb.inv_freq") or (model.spec.tied and name == "lm_head.weight")
