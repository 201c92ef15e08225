"""A model goes into Megatron and home again as two stages of a recipe, killed on the way, and is the same model."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reasonforge import artifacts
from reasonforge.errors import RequestError
from recipes.recipe import Recipe, save_resolved
from recipes.run_directory import RunDirectory
from recipes.run_stage import is_done, open_job, run_stage

ROOT = Path(__file__).parents[2]


def make_model(directory: Path, hidden: int) -> None:
    """A Llama of random numbers with a tokenizer, by hand: large ones take transformers too long."""
    directory.mkdir()
    (directory / "config.json").write_text(
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 200, "num_hidden_layers": 2, '
        f'"hidden_size": {hidden}, "intermediate_size": {hidden * 4}, "num_attention_heads": 4, '
        '"num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": false, '
        '"torch_dtype": "float32"}'
    )
    (directory / "tokenizer_config.json").write_text("{}")
    (directory / "tokenizer.json").write_text("{}")
    torch.manual_seed(0)
    state = {
        "model.embed_tokens.weight": (200, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (200, hidden),
    }
    for layer in range(2):
        shapes = {
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden // 2, hidden),
            "self_attn.v_proj": (hidden // 2, hidden), "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (4 * hidden, hidden), "mlp.up_proj": (4 * hidden, hidden),
            "mlp.down_proj": (hidden, 4 * hidden), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
        }  # fmt: skip
        state |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}
    save_file({name: torch.randn(shape) for name, shape in state.items()}, directory / "model.safetensors")


def make_run(tmp_path: Path, hidden: int = 32, directory: str = "megatron") -> RunDirectory:
    make_model(tmp_path / "model", hidden)
    stages = {
        "base": {"type": "base_model", "source": {"type": "checkpoint", "path": str(tmp_path / "model")}},
        "into": {"type": "import_checkpoint", "inputs": {"model": "base"}, "directory": directory},
        "home": {"type": "export_checkpoint", "inputs": {"checkpoint": "into"}},
    }
    run = RunDirectory(tmp_path / "run")
    save_resolved(Recipe.model_validate({"name": "there-and-back", "stages": stages}), run.recipe)
    return run


def assert_same(one: Path, other: Path) -> None:
    first, second = (load_file(path / "model.safetensors") for path in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("directory", ["megatron", "nemo", "bridge"])
def test_there_and_back(directory: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, directory=directory)
    for stage in ("base", "into", "home"):
        run_stage(run, stage)
        artifacts.verify(run.stage(stage))
    assert artifacts.load(run.stage("into")).receipt.kind == "megatron_checkpoint"
    assert_same(tmp_path / "model", run.stage("home"))
    assert (run.stage("home") / "tokenizer_config.json").read_text() == "{}"


def test_the_same_model_again_is_the_same_artifact(tmp_path: Path) -> None:
    """Times of files are no part of it, so the stages behind an import that was done again are not done again."""
    run = make_run(tmp_path)
    for stage in ("base", "into", "home"):
        run_stage(run, stage)
    digest = artifacts.load(run.stage("into")).receipt.digest
    for stage in ("base", "into"):
        run_stage(run, stage, force=True)
    assert artifacts.load(run.stage("into")).receipt.digest == digest
    assert is_done(open_job(run, "home"))


@pytest.mark.parametrize("stage", ["into", "home"])
def test_killed_at_any_moment_it_goes_on(stage: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, hidden=512)
    for before in ("base", "into")[: 1 if stage == "into" else 2]:
        run_stage(run, before)
    command = [sys.executable, "-m", "recipes.run_stage", str(run.root), stage]
    killed = 0
    for delay in (0.2, 0.3, 0.35, 0.4, 0.5):
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        time.sleep(delay)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed
    run_stage(run, stage)
    artifacts.verify(run.stage(stage))
    if stage == "into":
        run_stage(run, "home")
    assert_same(tmp_path / "model", run.stage("home"))


def test_a_model_without_a_map_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    config = tmp_path / "model/config.json"
    config.write_text(config.read_text().replace('"llama"', '"mamba"'))
    run_stage(run, "base")
    with pytest.raises(RequestError, match="no map for 'mamba'"):
        run_stage(run, "into")
    assert not run.stage("into").exists()
