"""What the tests of the engines on Megatron share: tiny models, tokens of the running sums, and plain transformers."""

from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from nemo_place import ROOT

from checkpoints_conversion.exporting import MAX_SHARD_BYTES, export_checkpoint
from checkpoints_conversion.importing import ImportOptions, import_checkpoint
from data_prep.sources.running_sum import draw
from data_prep.tokenization.dataset import tokenize_rows
from reasonforge.files import read_jsonl
from reasonforge.progress import Progress
from recipes.engines.megatron.batches import Batches
from recipes.engines.megatron.rows import Rows, map_rows, unfold
from recipes.engines.scratch import TinyModel

SIDE = ROOT / "tests/recipes/training_side.py"
SHAPE: dict[str, Any] = {
    "layers": 2, "hidden_size": 64, "heads": 4, "kv_heads": 2, "ffn_size": 96, "init_std": 0.05, "max_position": 256,
    "vocabulary": 300,
}  # fmt: skip
OPTIONS: dict[str, Any] = {
    "type": "nemo",
    "precision": {"type": "fp32"},
    "layer_spec": "local",
    "asynchronous_save": False,
    "log_every": 1,
    "batch_size": 8,
    "micro_batch_size": 8,
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "adam_beta2": 0.98,
}


def traces(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of very different lengths."""
    rows = []
    for number in range(count):
        problem = draw(Random(seed * 100_000 + number), 2, 9)
        thought = "\n".join(map(str, problem.totals))
        response = f"<think>\n{thought}\n</think>\n\\boxed{{{problem.answer}}}"
        rows.append({"id": f"row-{number}", "prompt": problem.prompt, "response": response})
    return rows


def build_model(root: Path, name: str, family: str, seed: int, directory: Literal["nemo", "bridge"] = "nemo") -> None:
    """A random model as `root/hf/NAME`, and imported as `root/DIRECTORY/NAME`, its vocabulary not padded: to Megatron a
    row of padding is a token like any other, with a logit of 0."""
    source = root / "hf" / name
    turns = [(row["prompt"], row["response"]) for row in traces(100, seed=9)]  # one tokenizer for all
    TinyModel(family=family, **SHAPE).build(turns, source, seed)  # type: ignore[arg-type]
    options = ImportOptions(directory=directory, layer_spec="local", vocabulary_multiple=4)
    import_checkpoint(source, root / directory / name, options, 1, counter)


def build_tokens(model: Path, directory: Path, rows: int, held_out: int = 0) -> None:
    """A tokens artifact without its receipt."""
    directory.mkdir(parents=True)
    tokenize_rows(traces(rows), model, directory / "tokens.parquet", max_tokens=200)
    if held_out:
        tokenize_rows(traces(held_out, seed=5), model, directory / "held_out.parquet", max_tokens=200)


def open_rows(parquet: Path, scratch: Path) -> Rows:
    if not scratch.exists():
        unfold(parquet, scratch)
    return map_rows(parquet, scratch)


def export(trained: Path, destination: Path) -> Path:
    export_checkpoint(trained, destination, None, MAX_SHARD_BYTES, 1, counter)
    return destination


def counter(total: int) -> Progress:
    return Progress("converting", total, "bytes")


def metrics(out: Path, key: str = "loss") -> list[float]:
    """What a training logged, step after step."""
    return [row[key] for row in read_jsonl(out / "metrics.jsonl") if key in row]


def load(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)


def token_losses(model: Any, rows: Rows, row: int) -> torch.Tensor:
    """The loss of each learned token of a row, which is in the model alone: no padding, no neighbours."""
    start, end = int(rows.starts[row]), int(rows.starts[row + 1])
    ids = torch.tensor(rows.ids[start:end].astype("int64"))[None]
    learned = torch.tensor(rows.mask[start + 1 : end].astype(bool))
    logits = model(ids).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits[learned], ids[0, 1:][learned], reduction="none")


def batch_loss(model: Any, rows: Rows, chosen: list[int]) -> torch.Tensor:
    """The mean over all learned tokens of some rows."""
    return torch.cat([token_losses(model, rows, row) for row in chosen]).mean()


def train_plainly(directory: Path, batches: Batches, rates: list[float], betas: tuple[float, float]) -> list[float]:
    """The losses of a training in plain transformers with torch's AdamW: the same rows in the same steps, the learning
    rates that were logged, gradients clipped to 1."""
    model = load(directory)
    optimizer = torch.optim.AdamW(model.parameters(), betas=betas, eps=1e-8, weight_decay=0.0)
    losses = []
    for step, rate in enumerate(rates):
        loss = batch_loss(model, batches.rows, batches.batch_rows(step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        losses.append(loss.item())
    return losses


def divergence(student: Any, teacher: Any, rows: Rows, chosen: list[int], temperature: float = 1.0) -> float:
    """The mean forward KL divergence of a teacher from a student over all learned tokens of some rows."""
    found = []
    for row in chosen:
        start, end = int(rows.starts[row]), int(rows.starts[row + 1])
        ids = torch.tensor(rows.ids[start:end].astype("int64"))[None]
        learned = torch.tensor(rows.mask[start + 1 : end].astype(bool))
        with torch.no_grad():
            ours, theirs = (
                (model(ids).logits[0, :-1][learned] / temperature).log_softmax(-1) for model in (student, teacher)
            )
        found.append((theirs.exp() * (theirs - ours)).sum(-1))
    return torch.cat(found).mean().item()


def cut_off_twice(jobs: list[dict[str, Any]], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Trainings of training_side.py that lose their end and go on: first from the checkpoint before the last, then from
    the one that a training had saved which had gone on itself."""
    chosen = [job for job in jobs if job["name"] in names]
    return [
        {**job, "out": f"{job['out']}-{suffix}", "cut_off": lost}
        for suffix, lost in (("again", 1), ("once-more", 0))
        for job in chosen
    ]


def check_cut_off(root: Path, name: str, tmp_path: Path) -> None:
    """What was cut off ends as if nothing had been."""
    whole, *others = (root / "out" / f"{name}{suffix}" for suffix in ("", "-again", "-once-more"))
    kept = [int(path.name[5:]) for path in (root / "scratch" / name / "checkpoints").glob("step-*")]
    assert 0 < min(kept) < max(kept) < len(metrics(whole))
    expected = load(export(whole, tmp_path / "whole"))
    for other in others:
        for key in ("loss", "eval_loss", "grad_norm"):
            assert metrics(other, key) == metrics(whole, key)
        found = load(export(other, tmp_path / other.name))
        assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), found.parameters(), strict=True))
