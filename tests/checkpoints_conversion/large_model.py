"""A model of 120 MB of random numbers, and conversions of it in processes of their own, long enough to be killed."""

import hashlib
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_checkpoints import edit_json, make_model

from checkpoints_conversion.publishing import RECEIPT

ROOT = Path(__file__).parents[2]


def make_large_model(directory: Path) -> None:
    make_model(directory, "llama", num_hidden_layers=1)
    edit_json(directory / "config.json", hidden_size=1024, head_dim=256, intermediate_size=4096, num_hidden_layers=2)
    edit_json(directory / "config.json", vocab_size=1000)
    state = {"model.embed_tokens.weight": torch.randn(1000, 1024), "model.norm.weight": torch.randn(1024)}
    state["lm_head.weight"] = torch.randn(1000, 1024)
    for layer in range(2):
        head = f"model.layers.{layer}."
        for name, rows, columns in (
            ("self_attn.q_proj", 1024, 1024), ("self_attn.k_proj", 512, 1024), ("self_attn.v_proj", 512, 1024),
            ("self_attn.o_proj", 1024, 1024), ("mlp.gate_proj", 4096, 1024), ("mlp.up_proj", 4096, 1024),
            ("mlp.down_proj", 1024, 4096),
        ):  # fmt: skip
            state[f"{head}{name}.weight"] = torch.randn(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"{head}{name}.weight"] = torch.randn(1024)
    save_file(state, directory / "model.safetensors")


def start(*arguments: object, patience_s: float = 60) -> subprocess.Popen[bytes]:
    """`reasonforge convert ...`, with small batches, so that a kill finds some done and some not."""
    script = (
        "import checkpoints_conversion.copying as c, checkpoints_conversion.tasks as t; "
        f"c.BATCH_BYTES = 4 << 20; t.PATIENCE_S = {patience_s}; from reasonforge.cli import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, "convert", *map(str, arguments)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file but the receipt, whose sources have times."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != RECEIPT
    }
