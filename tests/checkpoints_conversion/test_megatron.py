"""Our checkpoints load into megatron-core's own GPTModel and compute what transformers computes; and the other way.

`make megatron`, which `make test` does first, puts the two versions of megatron-core into .megatron. The layer spec is
the local one: Transformer Engine's needs a GPU. The largest difference of each case goes into the JUnit report.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from megatron_client import ROOT, VERSIONS, MegatronCore
from random_models import SIZES, write_random
from tiny_checkpoints import assert_same_weights, make_model, to_huggingface, to_megatron

from checkpoints_conversion.directories import DIRECTORIES
from checkpoints_conversion.torch_dist import open_torch_dist
from checkpoints_conversion.torch_format import Metadata

TOKENS = torch.arange(2 * 60).reshape(2, 60) * 7 % 100
SPREAD = {"initializer_range": 0.1}
"""Of the weights: with transformers' 0.02 a model this small attends to all tokens alike, and no wrong rope shows."""
LIMIT = 1e-5
"""Of the difference between two fp32 logits."""


@pytest.fixture(
    scope="session",
    params=[pytest.param(version, marks=pytest.mark.xdist_group(f"megatron-{version}")) for version in VERSIONS],
)
def core(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MegatronCore]:
    if not (ROOT / request.param / ".ready").is_file():
        said = f"no megatron-core {request.param} in {ROOT.name}: run make megatron"
        if os.environ.get("CI") == "true":
            pytest.fail(said)
        pytest.skip(said)
    found = MegatronCore(request.param, tmp_path_factory.mktemp("megatron"))
    yield found
    found.close()


def expected(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(tokens).logits.float()
    return found


def difference(found: torch.Tensor | None, model: Any, tokens: torch.Tensor = TOKENS) -> float:
    assert found is not None
    reference = expected(model, tokens)
    return (found[..., : reference.shape[-1]] - reference).abs().max().item()


def shapes(metadata: Metadata) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {key: (tensor.dtype, tensor.shape) for key, tensor in metadata.tensors.items()}


def local(family: str) -> dict[str, Any]:
    """The options that make a checkpoint for the local layer spec."""
    return {"layer_spec": "local"} if family == "qwen3_moe" else {}


CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {}, {}),
    ("llama", {}, {"tp": 2}),
    ("llama-rope-scaled", {"tie_word_embeddings": True}, {}),
    ("llama-rope-scaled", {}, {"pp": 2}),
    ("qwen2", {"num_key_value_heads": 4}, {}),
    ("qwen2", {"tie_word_embeddings": True}, {"tp": 2}),
    ("qwen2", {"tie_word_embeddings": True}, {"pp": 2}),
    ("qwen3", {"num_key_value_heads": 1}, {}),
    ("qwen3", {}, {"tp": 2}),
    ("qwen3", {}, {"pp": 2}),
    ("qwen3_moe", {}, {}),
    ("qwen3_moe", {"norm_topk_prob": False}, {}),
    ("qwen3_moe", {}, {"tp": 2}),
    ("qwen3_moe", {}, {"pp": 2}),
    ("qwen3_moe", {}, {"ep": 2}),
]


@pytest.mark.parametrize(("family", "changes", "parallel"), CASES)
def test_logits_are_those_of_transformers(
    family: str,
    changes: dict[str, Any],
    parallel: dict[str, Any],
    core: MegatronCore,
    tmp_path: Path,
    record_property: Any,
) -> None:
    model = make_model(tmp_path / "hf", family, **SPREAD, **changes)
    to_megatron(tmp_path / "hf", tmp_path / "megatron", **local(family))
    found = core.load(
        tmp_path / "hf", tmp_path / "megatron/iter_0000001", compare=not parallel, tokens=TOKENS, **parallel
    )
    largest = difference(found, model)
    record_property("largest difference of a logit", largest)
    assert largest < LIMIT


@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        ("llama-rope-scaled", {"rope_factor": None}),
        ("qwen3", {"norm_epsilon": 1e-5}),
        ("qwen3_moe", {"norm_topk": False}),
    ],
)
def test_a_wrong_setting_shows_in_the_logits(
    family: str, wrong: dict[str, Any], core: MegatronCore, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "hf", family, **SPREAD)
    to_megatron(tmp_path / "hf", tmp_path / "megatron", **local(family))
    found = core.load(tmp_path / "hf", tmp_path / "megatron/iter_0000001", tokens=TOKENS, **wrong)
    assert difference(found, model) > 50 * LIMIT


@pytest.mark.parametrize(
    ("family", "parallel"),
    [("llama", {"tp": 2}), ("qwen2", {"pp": 2}), ("qwen3_moe", {}), ("qwen3_moe", {"ep": 2})],
)
def test_what_megatron_saves_exports(family: str, parallel: dict[str, Any], core: MegatronCore, tmp_path: Path) -> None:
    """megatron-core saves a random model at a parallelism; the export computes the same logits in transformers."""
    from transformers import AutoModelForCausalLM

    make_model(tmp_path / "hf", family)
    saved = tmp_path / "saved"
    saved.mkdir()
    core.save(tmp_path / "hf", saved, **parallel)
    to_megatron(tmp_path / "hf", tmp_path / "ours", **local(family))
    theirs, ours = open_torch_dist(saved).metadata, open_torch_dist(tmp_path / "ours/iter_0000001").metadata
    assert shapes(theirs) == shapes(ours)
    assert set(theirs.objects) <= set(ours.objects)
    to_huggingface(saved, tmp_path / "back", tmp_path / "hf")
    found = core.load(tmp_path / "back", saved, tokens=TOKENS)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype="float32").eval()
    assert difference(found, model) < LIMIT
    to_megatron(tmp_path / "back", tmp_path / "again", **local(family))
    to_huggingface(tmp_path / "again", tmp_path / "once_more")
    assert_same_weights(tmp_path / "back", tmp_path / "once_more")


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(sizes=SIZES)
def test_random_small_models_convert_load_and_convert_back(
    sizes: dict[str, Any], core: MegatronCore, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In float32 the weights are moderate numbers and the logits are compared; else they are any bits, NaN too."""
    from transformers import AutoModelForCausalLM

    tmp_path = tmp_path_factory.mktemp("random")
    write_random(tmp_path / "hf", sizes)
    options = {"directory": sizes["directory"], "vocabulary_multiple": sizes["multiple"], "layer_spec": "local"}
    to_megatron(tmp_path / "hf", tmp_path / "megatron", **options)
    directory, computes = DIRECTORIES[sizes["directory"]], sizes["dtype"] == torch.float32
    tokens = torch.arange(10).reshape(2, 5) * 7 % sizes["vocabulary"]
    found = core.load(
        tmp_path / "hf", tmp_path / "megatron" / directory.weights, prefix=directory.prefix, compare=True,
        tokens=tokens if computes else None, dtype=str(sizes["dtype"]).removeprefix("torch."),
        padded_vocab=-(-sizes["vocabulary"] // sizes["multiple"]) * sizes["multiple"],
    )  # fmt: skip
    if computes:
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="float32", experts_implementation="eager")
        assert difference(found, model.eval(), tokens) < LIMIT
    to_huggingface(tmp_path / "megatron", tmp_path / "back", max_shard_bytes=sizes["shard_bytes"])
    assert_same_weights(tmp_path / "hf", tmp_path / "back")
