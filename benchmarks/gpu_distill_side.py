"""What `benchmarks.gpu_distill` does in the Python of the engine: `python -m benchmarks.gpu_distill_side WHAT WORK`.

WHAT is `prepare`, which looks at the machine and makes model and traces, or `peer`, which trains in plain transformers.
The directory WORK has settings.json and recipe.yaml; WHAT.json is put into it, or why the machine is refused.
"""

import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

from reasonforge.errors import RequestError
from reasonforge.files import read_json, write_json, write_jsonl
from reasonforge.processes import output
from recipes.engines.scratch import CHAT_TEMPLATE, END_OF_TURN, PADDING
from recipes.environment import describe_environment
from recipes.preflight.table import GIB
from recipes.recipe import load_recipe

SHAPES = {"1b": (2048, 8192, 16, 32, 8, 128256), "3b": (3072, 8192, 28, 24, 8, 128256), "tiny": (64, 128, 2, 4, 2, 512)}
"""Llama-3.2-1B and -3B, and one for a trial: sizes of hidden state and feed-forward, layers, heads, key-value heads,
and vocabulary."""

ROWS_PER_SEQUENCE = 32
_CONTROL = ("<|im_start|>", END_OF_TURN, PADDING, "<unk>", "user", "assistant")
_TEMPLATE_TOKENS = 8

Figures = dict[str, Any]


def main() -> None:
    """Do what is asked for, and write what was found."""
    what, work = sys.argv[1], Path(sys.argv[2])
    try:
        found = {"prepare": prepare, "peer": train_peer}[what](read_json(work / "settings.json"), work)
    except RequestError as error:
        found = {"refused": [error.where, error.problem, error.remedy]}
    write_json(work / f"{what}.json", found)


def prepare(settings: Figures, work: Path) -> Figures:
    """The machine and its versions. Raises RequestError where the engine cannot run."""
    stage = [*load_recipe(work / "recipe.yaml").stages.values()][-1]
    absent = [module for module in stage.needs if lacks(module)]
    if absent:
        variable = f"REASONFORGE_{stage.environment}_PYTHON".upper()
        remedy = f"take NVIDIA's NeMo container, or name a Python that has all as {variable}"
        raise RequestError(f"engine {settings['engine']}", f"{sys.executable} has no {', '.join(absent)}", remedy)
    import torch

    if torch.cuda.device_count() == 0:
        raise RequestError("gpu_distill", "this machine has no GPU that torch can use", "run it where there is one")
    if settings["layers"] == "te" and lacks("transformer_engine"):
        remedy = "take NVIDIA's NeMo container, or measure bf16 with --layers local"
        raise RequestError("--layers te", f"{sys.executable} has no Transformer Engine", remedy)
    make_model(settings["size"], work / "hf")
    write_jsonl(work / "traces.jsonl", traces(settings))
    device: Figures = {"name": "none", "memory_gib": None, "compute_capability": None, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        device |= {"name": found.name, "memory_gib": found.total_memory / GIB}
        device["compute_capability"] = found.major + found.minor / 10
    device["driver"] = output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"])
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return {"date": date, "device": device, "environment": describe_environment()}


def lacks(module: str) -> bool:
    """Whether this Python has no such module."""
    try:
        return find_spec(module) is None
    except ModuleNotFoundError:  # of the package that it is in
        return True


def make_model(size: str, directory: Path) -> None:
    """A Llama 3.2 of random bf16 weights, and a tokenizer with a token for each of the words w0, w1, ..."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    words = [*_CONTROL, *(f"w{number}" for number in range(SHAPES[size][-1] - len(_CONTROL)))]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, _CONTROL[3]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(list(_CONTROL[:3]))
    PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END_OF_TURN, pad_token=PADDING, chat_template=CHAT_TEMPLATE
    ).save_pretrained(directory)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(model_config(size)).bfloat16().save_pretrained(directory)


def model_config(size: str) -> Any:
    """The model's shape, as transformers has it."""
    from transformers import LlamaConfig

    hidden, ffn, layers, heads, groups, vocabulary = SHAPES[size]
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    return LlamaConfig(
        hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=groups, vocab_size=vocabulary, tie_word_embeddings=True, rms_norm_eps=1e-5,
        rope_theta=500000.0, rope_scaling=scaling, max_position_embeddings=131072, bos_token_id=None,
        eos_token_id=_CONTROL.index(END_OF_TURN),
    )  # fmt: skip


def traces(settings: Figures) -> Iterator[Figures]:
    """Rows of random words, whose lengths are log-normal with a median of a quarter of the longest."""
    random, words, length = Random(0), SHAPES[settings["size"]][-1] - len(_CONTROL), settings["length"]
    prompt, longest = length // 16, length - length // 16 - _TEMPLATE_TOKENS
    for number in range(settings["batch"] * ROWS_PER_SEQUENCE):
        response = min(int(length / 4 * random.lognormvariate(0, 1)) + 1, longest)
        asked, said = (" ".join(f"w{random.randrange(words)}" for _ in range(count)) for count in (prompt, response))
        yield {"id": str(number), "problem_id": str(number), "prompt": asked, "response": said, "answer": "0"}


def train_peer(settings: Figures, work: Path) -> Figures:
    """Train the same model on the same rows: in each step about as many as the engine takes."""
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens = pq.read_table(work / "run/stages/tokenize/tokens.parquet")
    rows = list(zip(tokens["input_ids"].to_pylist(), tokens["completion_mask"].to_pylist(), strict=True))
    each = settings["batch"]
    if settings["layers"] == "te":
        each = round(each * settings["length"] * len(rows) / sum(len(ids) - 1 for ids, _ in rows))
    model = AutoModelForCausalLM.from_pretrained(work / "hf", attn_implementation="sdpa").float()
    if device == "cuda":
        model.cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0, fused=device == "cuda")
    endless, trained, began, loss = cycle(rows), 0, time.monotonic(), 0.0
    for step in range(settings["steps"]):
        if step == settings["warmup"]:
            trained, began = 0, time.monotonic()
        losses = []
        for ids, mask in islice(endless, each):
            known = torch.tensor([ids], device=device)
            labels = known.masked_fill(torch.tensor([mask], device=device) == 0, -100)
            with torch.autocast(device, torch.bfloat16):
                losses.append(model(input_ids=known, labels=labels).loss / each)
            losses[-1].backward()
            trained += len(ids) - 1
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss = sum(share.item() for share in losses)  # waits for the GPU, as the engine does after each step
    seconds, steps = time.monotonic() - began, settings["steps"] - settings["warmup"]
    memory = torch.cuda.max_memory_allocated() / GIB if device == "cuda" else None
    speed = {"steps": steps, "step_s": seconds / steps, "tokens_per_second": trained / seconds}
    return {**speed, "memory_gib": memory, "loss": loss}


if __name__ == "__main__":
    main()
