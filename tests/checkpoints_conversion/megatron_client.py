"""Sends cases to megatron-core, which runs in processes of its own; `test_megatron` has one client for each version."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import torch

from checkpoints_conversion.families import family_of
from checkpoints_conversion.spec import read_spec

VERSIONS = ("0.15.3", "0.16.1")
ROOT = Path(__file__).parents[2] / ".megatron"
"""Where `make megatron` puts each version: a directory to prepend to Python's path."""


class MegatronCore:
    """A version of megatron-core, in as many processes as a case has ranks; they live until `close`."""

    def __init__(self, version: str, scratch: Path):
        self.version = version
        self._scratch = scratch
        self._ranks: list[subprocess.Popen[str]] = []
        self._cases = 0

    def save(self, model: Path, directory: Path, **changes: Any) -> None:
        """Let it save a random model of another's shape into an existing directory."""
        self._ask("save", shape_of(model) | changes, {"directory": str(directory)})

    def load(
        self, model: Path, directory: Path, *, prefix: str = "", compare: bool = False,
        tokens: torch.Tensor | None = None, **changes: Any,
    ) -> torch.Tensor | None:  # fmt: skip
        """Let it load a checkpoint; returns the logits of tokens, where they are given.

        Args:
            compare: whether every value must be that of the Hugging Face model; without parallelism only.
            changes: fields of the model's shape that are other than config.json's, and `tp`, `pp`, `ep`.
        """
        request: dict[str, Any] = {"directory": str(directory), "prefix": prefix}
        if compare:
            request["model"] = str(model)
        if tokens is not None:
            request |= {"tokens": tokens.tolist(), "logits": str(self._scratch / "logits.pt")}
        self._ask("load", shape_of(model) | changes, request)
        return None if tokens is None else torch.load(self._scratch / "logits.pt")

    def close(self) -> None:
        """End the processes."""
        for rank in self._ranks:
            if rank.stdin is not None:
                rank.stdin.close()
            rank.wait(timeout=60)

    def _ask(self, verb: str, spec: dict[str, Any], request: dict[str, Any]) -> None:
        self._cases += 1
        world = max(spec["tp"] * spec["pp"], spec["ep"])
        rendezvous = self._scratch / f"rendezvous-{self._cases}"
        case = {"verb": verb, "spec": spec, "world": world, "rendezvous": str(rendezvous), **request}
        line = json.dumps(case) + "\n"
        while len(self._ranks) < world:
            self._start()
        ranks = self._ranks[:world]
        for rank in ranks:
            _pipe(rank.stdin).write(line)
            _pipe(rank.stdin).flush()
        answers = [json.loads(_pipe(rank.stdout).readline() or "null") for rank in ranks]
        log = (self._scratch / "log").read_text(errors="replace")[-3000:]
        assert None not in answers, f"megatron-core {self.version} died: {log}"
        errors = [answer["error"] for answer in answers if answer]
        assert not errors, "\n".join(errors)

    def _start(self) -> None:
        with open(self._scratch / "log", "a", encoding="utf-8") as log:
            self._ranks.append(
                subprocess.Popen(
                    [sys.executable, str(Path(__file__).parent / "megatron_side.py"), str(len(self._ranks))],
                    env=os.environ
                    | {"PYTHONPATH": str(ROOT / self.version), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            )


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def shape_of(model: Path) -> dict[str, Any]:
    """A Hugging Face model's shape as `megatron_side` takes it, without parallelism."""
    spec = read_spec(model / "config.json")
    family = family_of(spec, model)
    return {
        "layers": spec.layers, "hidden": spec.hidden, "heads": spec.heads, "groups": spec.groups,
        "head_dim": spec.head_dim, "ffn": spec.ffn, "qkv_bias": family.qkv_bias, "qk_norm": family.qk_norm,
        "norm_epsilon": spec.norm_epsilon, "tied": spec.tied, "rope_theta": spec.rope_theta,
        "rope_factor": spec.rope_factor, "positions": spec.positions, "vocab": spec.vocabulary,
        "padded_vocab": spec.padded_vocabulary(128), "experts": spec.experts or None, "moe_ffn": spec.expert_ffn,
        "topk": spec.experts_per_token, "norm_topk": spec.norm_topk, "dtype": "float32",
        "tp": 1, "pp": 1, "ep": 1,
    }  # fmt: skip
