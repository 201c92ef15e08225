"""Directories of Megatron checkpoints: Megatron-LM's (which Megatron-Bridge reads too), NeMo 2's and Megatron-Bridge's.

`importing` writes the first; `exporting`, `inspection` and `verification` find the weights in all three.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from checkpoints_conversion.assembly import Assembly, Files
from checkpoints_conversion.families.table import tensors
from checkpoints_conversion.geometry import Stored, export_assemblies
from checkpoints_conversion.huggingface import CONFIG, HuggingFace, companions
from checkpoints_conversion.spec import ModelSpec
from checkpoints_conversion.torch_dist import BACKEND, METADATA, TorchDist, open_torch_dist
from checkpoints_conversion.torch_format import namespace
from reasonforge.errors import RequestError
from reasonforge.files import write_atomic

Kind = Literal["megatron", "nemo", "bridge"]

TRACKER = "latest_checkpointed_iteration.txt"
ITERATION = 1
"""The iteration of an imported checkpoint: Megatron-LM before 2026 refuses a tracker that says 0."""
WEIGHTS = f"iter_{ITERATION:07d}"
CARRIED = "huggingface"
"""Where an imported checkpoint keeps the model's configuration and tokenizer, so that an export needs nothing else."""

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
    choices = (root / CARRIED, place.weights / CARRIED, place.root / "context" / CARRIED)
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


def write_directory(tree: Path, model: HuggingFace) -> None:
    """Write what stands beside the weights: the model's own files, and the tracker that names the iteration."""
    for path in companions(model.path):
        target = tree / CARRIED / path.relative_to(model.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    write_atomic(tree / TRACKER, f"{ITERATION}\n")


def common_state(model: HuggingFace, padded_vocabulary: int, vocabulary_multiple: int, dtype: str) -> dict[str, Any]:
    """The content of `common.pt`: the iteration, and the arguments that Megatron-LM (--use-checkpoint-args) and
    Megatron-Bridge build the model from.

    Args:
        dtype: torch's name of the weights' type.
    """
    arguments = _arguments(model.spec) | {
        "add_qkv_bias": model.family.qkv_bias,
        "qk_layernorm": model.family.qk_norm,
        "make_vocab_size_divisible_by": vocabulary_multiple,
        "padded_vocab_size": padded_vocabulary,
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "tokenizer_type": "HuggingFaceTokenizer",
    }
    return {
        "args": namespace(arguments),
        "checkpoint_version": 3.0,
        "iteration": ITERATION,
        "num_floating_point_operations_so_far": 0,
    }


def _arguments(spec: ModelSpec) -> dict[str, Any]:
    """A model's shape under the names of Megatron-LM's arguments (megatron/training/arguments.py)."""
    found: dict[str, Any] = {
        "num_layers": spec.layers,
        "hidden_size": spec.hidden,
        "ffn_hidden_size": spec.ffn,
        "num_attention_heads": spec.heads,
        "group_query_attention": spec.groups != spec.heads,
        "num_query_groups": spec.groups,
        "kv_channels": spec.head_dim,
        "seq_length": spec.positions,
        "max_position_embeddings": spec.positions,
        "position_embedding_type": "rope",
        "add_position_embedding": True,
        "use_rotary_position_embeddings": True,
        "rotary_base": int(spec.rope_theta) if spec.rope_theta.is_integer() else spec.rope_theta,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "use_rope_scaling": spec.rope_factor is not None,
        "rope_scaling_factor": 8.0 if spec.rope_factor is None else spec.rope_factor,
        "normalization": "RMSNorm",
        "norm_epsilon": spec.norm_epsilon,
        "apply_layernorm_1p": False,
        "add_bias_linear": False,
        "swiglu": True,
        "squared_relu": False,
        "untie_embeddings_and_output_weights": not spec.tied,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "init_method_std": spec.initializer_range,
        "apply_query_key_layer_scaling": False,
        "vocab_size": spec.vocabulary,
        "num_experts": spec.experts or None,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "world_size": 1,
        "data_parallel_size": 1,
        "no_save_optim": True,
        "no_save_rng": True,
        "ckpt_format": "torch_dist",
    }
    if spec.experts:
        found |= {
            "moe_ffn_hidden_size": spec.expert_ffn,
            "moe_router_topk": spec.experts_per_token,
            "moe_router_pre_softmax": not spec.norm_topk,
            "moe_layer_freq": 1,
            "moe_grouped_gemm": True,
        }
    return found
