"""What the tests of servers share: a model that has something to say, runs over servers, and what is left of them."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_prep.generation import Sampling, VLLMEngine
from reasonforge.progress import Progress

Problems = list[dict[str, str]]

STAND_IN = [sys.executable, str(Path(__file__).with_name("vllm_stand_in.py")), "serve"]
GREEDY = Sampling(samples=3, temperature=0, max_tokens=16)

STAGE = """
import json, sys
from pathlib import Path
from recipes.interruption import EXIT_INTERRUPTED, Interrupted, catch_signals
from recipes.stage import StageContext
from recipes.stages.generate import GenerateStage
from reasonforge.artifacts import Artifact

root, problems, options = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
catch_signals()
inputs = {"problems": Artifact(problems, None)}
context = StageContext("generate", 0, inputs, root, root / "scratch", root / "progress.json")
try:
    GenerateStage.model_validate({"inputs": {"problems": "problems"}, **options}).run(context)
except Interrupted:
    sys.exit(EXIT_INTERRUPTED)
"""
"""A `generate` stage in a process of its own: its root, the directory of its problems, its options."""


def wordy(tiny_model: Path, directory: Path, **sizes: int) -> Path:
    """A tiny model that says something else to every prompt."""
    import shutil

    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    shutil.copytree(tiny_model, directory)
    config = Qwen2Config.from_pretrained(directory, initializer_range=0.6, tie_word_embeddings=False, **sizes)
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


def engine(model: Path, **options: Any) -> VLLMEngine:
    given = {"replicas": 2, "max_num_seqs": 2, "executable": STAND_IN, "start_s": 120.0, **options}
    return VLLMEngine(model_path=str(model), **given)


def generate(engine: VLLMEngine, problems: Problems, root: Path, sampling: Sampling = GREEDY) -> Any:
    """The counts of a run in this process. No stand-in answers before each has been asked, however late it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAND_IN_ASKED", str(root / "asked"))
        patch.setenv("STAND_IN_SERVERS", str(engine.replicas))
        return engine.generate(
            problems,
            sampling,
            destination=root / "traces.jsonl",
            scratch=root / "scratch",
            seed=0,
            progress=Progress,
        )


def below(top: int) -> list[psutil.Process]:
    return psutil.Process(top).children(recursive=True)


def servers(top: int) -> list[psutil.Process]:
    """The processes of servers below one, their guards not counted."""
    found = []
    for process in below(top):
        with suppress(psutil.Error):
            words = process.cmdline()
            if "serve" in words and not any(word.endswith("guard.py") for word in words):
                found.append(process)
    return found


def journaled(root: Path) -> list[str]:
    path = root / "scratch" / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["key"] for line in lines if line.endswith(b"\n")]
