"""What the stages of a recipe take of memory and disk, before anything runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.preflight.shape import parameters
from recipes.preflight.stages import Need, needs
from recipes.recipe import Recipe, load_recipe

QWEN = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 151_936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "num_hidden_layers": 28,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
"""Qwen2.5-1.5B's shape."""


def recipe_of(tmp_path: Path, config: dict[str, Any] = QWEN, **changes: Any) -> Recipe:
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    gpu = {"gpus_per_node": 1}
    stages: dict[str, Any] = {
        "problems": {"type": "problems", "source": {"type": "running_sum", "train": 100, "eval": 5}},
        "base": {"type": "base_model", "source": {"type": "checkpoint", "path": str(tmp_path / "model")}},
        "generate": {"type": "generate", "inputs": {"problems": "problems"}, "engine": {"type": "programmatic"}},
        "curate": {
            "type": "curate",
            "inputs": {"traces": "generate", "problems": "problems"},
            "grader": {"type": "exact"},
        },
        "tokenize": {"type": "tokenize", "inputs": {"dataset": "curate", "model": "base"}, "max_tokens": 8192},
        "distill": {
            "type": "distill",
            "inputs": {"model": "base", "tokens": "tokenize"},
            "engine": {"type": "trl", "steps": 10, "batch_size": 16},
            "resources": gpu,
        },
        "import": {"type": "import_checkpoint", "inputs": {"model": "distill"}},
        "export": {"type": "export_checkpoint", "inputs": {"checkpoint": "import"}, "dtype": "float32"},
        "grpo": {
            "type": "grpo",
            "inputs": {"model": "export", "problems": "problems"},
            "grader": {"type": "exact"},
            "engine": {"type": "trl", "steps": 10, "max_completion_tokens": 8192, "micro_batch_size": 1},
            "resources": gpu,
        },
        "evaluate": {
            "type": "evaluate",
            "inputs": {"model": "grpo", "problems": "problems"},
            "engine": {"type": "hf"},
            "sampling": {"samples": 4},
            "grader": {"type": "exact"},
            "resources": gpu,
        },
    }
    for key, value in changes.items():
        stages[key]["engine"].update(value)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "r", "seed": 1, "stages": stages}))
    return load_recipe(tmp_path / "recipe.yaml")


CAPACITY = {"distill": 80.0, "grpo": 80.0, "evaluate": 80.0}


def test_the_state_of_a_training_is_18_bytes_a_parameter(tmp_path: Path) -> None:
    table = needs(recipe_of(tmp_path), CAPACITY)["distill"].gpu
    assert table is not None
    state = sum(table.bytes_of(name) for name in ("weights", "gradients", "optimizer"))
    assert state == pytest.approx(18 * 1_543_714_304, rel=1e-3)  # the published number of parameters
    assert not table.fits


@pytest.mark.parametrize("stage", ["distill", "evaluate"])
def test_what_the_remedy_says_would_fit_fits(stage: str, tmp_path: Path) -> None:
    need = needs(recipe_of(tmp_path), CAPACITY)[stage]
    assert need.gpu is not None
    assert not need.gpu.fits
    said = need.remedy.removeprefix("it would fit with engine")
    change = {"batch_size": int(said.split()[-1])} if said.startswith(".batch_size") else yaml.safe_load(said[2:])
    again = needs(recipe_of(tmp_path, **{stage: change}), CAPACITY)[stage].gpu
    assert again is not None
    assert again.fits


def test_a_gpu_that_is_too_small_for_the_state_is_said_so(tmp_path: Path) -> None:
    assert needs(recipe_of(tmp_path), {"distill": 16.0})["distill"].remedy.startswith("it takes a GPU with more")


def test_reinforcement_counts_generation_and_the_reference(tmp_path: Path) -> None:
    plain = needs(recipe_of(tmp_path), CAPACITY)["grpo"].gpu
    kept = needs(recipe_of(tmp_path, grpo={"kl_coefficient": 0.01}), CAPACITY)["grpo"].gpu
    assert plain is not None
    assert kept is not None
    assert plain.bytes_of("key-value cache") == 32 * 8 * 8192 * 2 * 28 * 2 * 128 * 2
    assert kept.total - plain.total == kept.bytes_of("reference model") == 4 * 1_543_714_304


def test_conversions_count_the_model_that_comes_to_them(tmp_path: Path) -> None:
    found = needs(recipe_of(tmp_path), {})
    assert list(found) == ["import", "export"]
    imported, exported = found["import"].conversion, found["export"].conversion
    assert imported is not None
    assert exported is not None
    assert imported.result == pytest.approx(2 * 1_543_714_304, rel=1e-3)
    assert exported.result == pytest.approx(4 * 1_543_714_304, rel=1e-3)


def test_of_a_model_that_no_map_covers_nothing_is_said(tmp_path: Path) -> None:
    assert needs(recipe_of(tmp_path, {**QWEN, "hidden_act": "gelu"}), CAPACITY) == {}
    (tmp_path / "model/config.json").unlink()
    assert needs(load_recipe(tmp_path / "recipe.yaml"), CAPACITY) == {}


def test_the_shape_is_the_published_one(tmp_path: Path) -> None:
    from checkpoints_conversion.spec import read_spec

    recipe_of(tmp_path)
    assert parameters(read_spec(tmp_path / "model/config.json")) == 1_543_714_304


def test_vllm_needs_a_cache_for_its_longest_sequence(tmp_path: Path) -> None:
    serving = {"type": "vllm", "model_path": str(tmp_path / "model"), "gpu_memory_utilization": 0.9}
    sampling = {"samples": 4, "max_tokens": 4096}

    def need(gpu: float, **options: Any) -> Need:
        document = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
        stage = {"type": "generate", "inputs": {"problems": "problems"}, "sampling": sampling}
        document["stages"]["generate"] = {**stage, "engine": {**serving, **options}}
        (tmp_path / "vllm.yaml").write_text(yaml.safe_dump(document))
        return needs(load_recipe(tmp_path / "vllm.yaml"), {"generate": gpu})["generate"]

    recipe_of(tmp_path)
    large, small = need(80.0), need(6.0)
    assert large.gpu is not None
    assert small.gpu is not None
    assert large.gpu.fits
    assert large.gpu.bytes_of("key-value cache of one sequence") == 32_768 * 2 * 28 * 2 * 128 * 2
    assert not small.gpu.fits
    change = yaml.safe_load(small.remedy.removeprefix("it would fit with engine: "))
    assert change["max_model_len"] == 4096 + 1024
    again = need(6.0, **change).gpu
    assert again is not None
    assert again.fits
    assert need(2.0).remedy.startswith("it takes GPUs with more memory")
