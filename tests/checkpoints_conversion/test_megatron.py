"""Our checkpoints load into megatron-core's own GPTModel and compute what transformers computes; and the other way.

megatron-core lives in an environment of its own, whose interpreter MEGATRON_PYTHON names; without it these tests are
skipped. It is made with: pip install torch==2.13.0; pip install --no-deps megatron-core==0.15.3; pip install
"numpy<2.4" packaging psutil. The largest difference of each case goes into the JUnit report (--junitxml).
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import assert_same_weights, make_model, to_huggingface, to_megatron

from checkpoints_conversion.families import family_of
from checkpoints_conversion.spec import read_spec
from checkpoints_conversion.torch_dist import open_torch_dist
from checkpoints_conversion.torch_format import Metadata

PYTHON = os.environ.get("MEGATRON_PYTHON")
SIDE = Path(__file__).parent / "megatron_side.py"

pytestmark = pytest.mark.skipif(not PYTHON, reason="MEGATRON_PYTHON names no interpreter with megatron-core")


def megatron(verb: str, model: Path, directory: Path, tmp_path: Path, **changes: Any) -> torch.Tensor | None:
    """Run megatron-core over a model's shape, one process for each rank; the logits where it computes them."""
    spec = read_spec(model / "config.json")
    family = family_of(spec, model)
    fields = {
        "layers": spec.layers, "hidden": spec.hidden, "heads": spec.heads, "groups": spec.groups,
        "head_dim": spec.head_dim, "ffn": spec.ffn, "qkv_bias": family.qkv_bias, "qk_norm": family.qk_norm,
        "norm_epsilon": spec.norm_epsilon, "tied": spec.tied, "rope_theta": spec.rope_theta,
        "rope_factor": spec.rope_factor, "positions": spec.positions, "vocab": spec.vocabulary,
        "padded_vocab": spec.padded_vocabulary(128), "experts": spec.experts or None, "moe_ffn": spec.expert_ffn,
        "topk": spec.experts_per_token, "norm_topk": spec.norm_topk, "tp": 1, "pp": 1,
    } | changes  # fmt: skip
    (tmp_path / "spec.json").write_text(json.dumps(fields))
    out = tmp_path / "logits.pt"
    ranks = fields["tp"] * fields["pp"]
    port = str(20000 + os.getpid() % 20000)
    processes = [
        subprocess.Popen(
            [str(PYTHON), str(SIDE), verb, str(tmp_path / "spec.json"), str(directory), str(out)],
            env=os.environ
            | {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    said = [process.communicate()[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), said[-1][-3000:]
    return torch.load(out) if verb == "logits" else None


def expected(model: Any) -> torch.Tensor:
    tokens = torch.arange(2 * 24).reshape(2, 24) * 7 % 100
    with torch.no_grad():
        found: torch.Tensor = model(tokens).logits.float()
    return found


def shapes(metadata: Metadata) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {key: (tensor.dtype, tensor.shape) for key, tensor in metadata.tensors.items()}


CASES = [
    ("llama", {}, 1, 1),
    ("llama-rope-scaled", {"tie_word_embeddings": True}, 1, 1),
    ("qwen2", {"num_key_value_heads": 4}, 1, 1),
    ("qwen2", {"tie_word_embeddings": True}, 2, 1),
    ("qwen2", {"tie_word_embeddings": True}, 1, 2),
    ("qwen3", {"num_key_value_heads": 1}, 1, 1),
    ("qwen3_moe", {}, 1, 1),
]


@pytest.mark.parametrize(("family", "changes", "tp", "pp"), CASES)
def test_logits_are_those_of_transformers(
    family: str, changes: dict[str, Any], tp: int, pp: int, tmp_path: Path, record_property: Any
) -> None:
    model = make_model(tmp_path / "hf", family, **changes)
    spelling = {"layer_spec": "local"} if family == "qwen3_moe" else {}
    to_megatron(tmp_path / "hf", tmp_path / "megatron", **spelling)
    found = megatron("logits", tmp_path / "hf", tmp_path / "megatron/iter_0000001", tmp_path, tp=tp, pp=pp)
    assert found is not None
    difference = (found[..., :100] - expected(model)).abs().max().item()
    record_property("largest difference of a logit", difference)
    assert difference < 1e-5


@pytest.mark.parametrize(("family", "tp", "pp"), [("llama", 2, 1), ("qwen2", 1, 2), ("qwen3_moe", 1, 1)])
def test_what_megatron_saves_exports(family: str, tp: int, pp: int, tmp_path: Path) -> None:
    """megatron-core saves a random model at a parallelism; the export computes the same logits in transformers."""
    from transformers import AutoModelForCausalLM

    make_model(tmp_path / "hf", family)
    saved = tmp_path / "saved"
    saved.mkdir()
    megatron("save", tmp_path / "hf", saved, tmp_path, tp=tp, pp=pp)
    to_megatron(tmp_path / "hf", tmp_path / "ours", **({"layer_spec": "local"} if family == "qwen3_moe" else {}))
    theirs, ours = open_torch_dist(saved).metadata, open_torch_dist(tmp_path / "ours/iter_0000001").metadata
    assert shapes(theirs) == shapes(ours)
    assert set(theirs.objects) <= set(ours.objects)
    to_huggingface(saved, tmp_path / "back", tmp_path / "hf")
    found = megatron("logits", tmp_path / "hf", saved, tmp_path)
    assert found is not None
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype="float32").eval()
    assert (found[..., :100] - expected(model)).abs().max().item() < 1e-5
    to_megatron(tmp_path / "back", tmp_path / "again", **({"layer_spec": "local"} if family == "qwen3_moe" else {}))
    to_huggingface(tmp_path / "again", tmp_path / "once_more")
    assert_same_weights(tmp_path / "back", tmp_path / "once_more")
