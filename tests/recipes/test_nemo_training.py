"""The `nemo` engine trains in the real nemo_toolkit as plain transformers does: losses side by side, on the CPU.

One process of NeMo does all trainings (training_side.py), for importing it takes most of the time.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from nemo_place import start_nemo
from nemo_runs import (
    OPTIONS,
    SIDE,
    batch_loss,
    build_model,
    build_tokens,
    check_cut_off,
    cut_off_twice,
    divergence,
    export,
    load,
    metrics,
    open_rows,
    train_plainly,
)
from stage_runs import two_ranks

from reasonforge.files import read_jsonl
from recipes.engines.megatron.batches import Batches, last_step, training_batches
from recipes.engines.nemo.options import NeMoEngine

pytestmark = pytest.mark.xdist_group("nemo")

ROWS, HELD_OUT, STEPS = 60, 20, 20
PACKS = 14
TRAININGS: dict[str, dict[str, Any]] = {
    "qwen2": {"validate_every": 10},
    "llama": {"validate_every": 10},
    "qwen2-in-small-parts": {
        "micro_batch_size": 2, "sequence_length": 160, "validate_every": 10, "validation_batches": 3,
        "distributed_optimizer": False,
    },
    "qwen2-adapters": {
        "lora": {"rank": 8, "alpha": 16}, "layer_spec": "te", "validate_every": 10, "learning_rate": 2e-2,
        "save_every": 5,
    },
    "qwen2-until-tokens": {"tokens": 3000},
    "qwen2-too-fast": {"learning_rate": 1e30, "max_grad_norm": 1e30, "warmup_steps": 0, "save_every": 1},
    "qwen2-of-a-teacher": {"distillation": {}, "save_every": 8},
    "qwen2-of-a-warm-teacher": {"distillation": {"temperature": 2.0}, "steps": 1, "warmup_steps": 0},
    "qwen2-whole-epochs": {"batch_size": ROWS, "micro_batch_size": 4, "steps": 8},
    "qwen2-packed": {
        "packed": True,
        "layer_spec": "te",
        "batch_size": PACKS,
        "micro_batch_size": 1,
        "sequence_length": 256,
        "steps": 8,
    },
}  # fmt: skip
CUT_OFF = ("qwen2-adapters", "qwen2-of-a-teacher")
"""What loses its end, and trains it again, twice."""


@dataclass(frozen=True)
class Trained:
    """What NeMo trained: `hf` and `nemo` models before, `out` after, and the tokens."""

    root: Path

    def out(self, name: str) -> Path:
        return self.root / "out" / name

    def batches(self, name: str, tokens: str = "tokens") -> Batches:
        rows = open_rows(self.root / "tokens" / f"{tokens}.parquet", self.root / "flat" / tokens)
        return training_batches(rows, options(name), seed=1)


def options(name: str) -> NeMoEngine:
    return NeMoEngine.model_validate({**OPTIONS, "steps": STEPS, **TRAININGS[name]})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("nemo-training")
    for number, family in enumerate(("qwen2", "llama")):
        build_model(root, family, family, seed=number)
    build_model(root, "teacher", "qwen2", seed=7)
    build_tokens(root / "hf/qwen2", root / "tokens", ROWS, HELD_OUT)
    jobs = [
        {
            "name": name,
            "model": str(root / "nemo" / name.partition("-")[0]),
            "teacher": str(root / "nemo/teacher") if "distillation" in changes else None,
            "tokens": str(root / "tokens"),
            "engine": options(name).model_dump(mode="json"),
            "scratch": str(root / "scratch" / name),
            "out": str(root / "out" / name),
            "seed": 1,
        }
        for name, changes in TRAININGS.items()
    ]
    (root / "job.json").write_text(json.dumps(jobs + cut_off_twice(jobs, CUT_OFF)))
    log = root / "nemo.log"
    process = start_nemo(root, log, SIDE, root / "job.json", WITHOUT_CUDA_MORE="without_te")
    assert process.wait() == 0, log.read_text()[-6000:]
    return Trained(root)


@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_the_losses_are_those_of_plain_transformers(name: str, trained: Trained, record_property: Any) -> None:
    """The same batches in the same order, AdamW with the same numbers, 32 bits."""
    rates = metrics(trained.out(name), "learning_rate")
    ours = metrics(trained.out(name))
    theirs = train_plainly(trained.root / "hf" / name, trained.batches(name), rates, (0.9, 0.98))
    difference = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
    record_property("losses", list(zip(ours, theirs, strict=True)))
    record_property("largest difference", difference)
    assert len(ours) == STEPS
    assert difference < 1e-3
    assert ours[-1] < ours[0] - 1


@pytest.mark.parametrize("name", ["qwen2", "llama", "qwen2-adapters"])
def test_the_exported_model_has_nemos_validation_loss(
    name: str, trained: Trained, tmp_path: Path, record_property: Any
) -> None:
    """Over all held-out rows, though they do not fill the last batch."""
    exported = load(export(trained.out(name), tmp_path / "hf"))
    rows = open_rows(trained.root / "tokens/held_out.parquet", tmp_path / "flat")
    with torch.no_grad():
        loss = batch_loss(exported, rows, list(range(len(rows)))).item()
    found = metrics(trained.out(name), "eval_loss")
    record_property("losses", [found[-1], loss])
    assert len(found) == STEPS // 10
    assert abs(found[-1] - loss) < 1e-3
    assert found[-1] < found[0]


def test_adapters_alone_are_trained(trained: Trained, tmp_path: Path) -> None:
    """What has none is as it was, bit for bit; what has one is not."""
    after = dict(load(export(trained.out("qwen2-adapters"), tmp_path / "hf")).named_parameters())
    before = dict(load(trained.root / "hf/qwen2").named_parameters())
    moved = {name for name, parameter in before.items() if not torch.equal(parameter, after[name])}
    matrices = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert moved == {name for name in before if name.split(".")[-2] in matrices and name.endswith(".weight")}


@pytest.mark.parametrize("name", CUT_OFF)
def test_a_training_that_is_cut_off_ends_as_if_nothing_had_been(name: str, trained: Trained, tmp_path: Path) -> None:
    check_cut_off(trained.root, name, tmp_path)


def test_two_processes_train_the_same_adapters(trained: Trained, tmp_path: Path) -> None:
    """Each process has the last step of half of them only until they are gathered."""
    job = next(job for job in json.loads((trained.root / "job.json").read_text()) if job["name"] == "qwen2-adapters")
    job["engine"] |= {"micro_batch_size": 4, "validate_every": None}  # a validation would gather them
    job |= {name: str(tmp_path / name) for name in ("scratch", "out")}
    (tmp_path / "job.json").write_text(json.dumps([job]))
    log = tmp_path / "nemo.log"
    both = [
        start_nemo(tmp_path, log, SIDE, tmp_path / "job.json", WITHOUT_CUDA_MORE="without_te", **variables)
        for variables in two_ranks()
    ]
    assert [process.wait() for process in both] == [0, 0], log.read_text()[-6000:]
    one, two = trained.out("qwen2-adapters"), tmp_path / "out"
    assert max(abs(a - b) for a, b in zip(metrics(one), metrics(two), strict=True)) < 1e-4
    models = [load(export(out, tmp_path / str(number))) for number, out in enumerate((one, two), 1)]
    pairs = zip(*(model.parameters() for model in models), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) < 1e-3


def test_micro_batches_padding_and_shared_optimizers_change_nothing(trained: Trained) -> None:
    """Each token of the batch weighs the same, however the batch is divided and padded."""
    for key in ("loss", "eval_loss"):
        one, other = metrics(trained.out("qwen2"), key), metrics(trained.out("qwen2-in-small-parts"), key)
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-4


def test_packed_rows_have_the_losses_of_padded_ones(trained: Trained, record_property: Any) -> None:
    """Each step takes all rows once, in packs or each in a sequence of its own: the same tokens weigh the same."""
    packs = trained.batches("qwen2-packed").packing
    assert packs is not None
    assert len(packs) == PACKS < ROWS / 2
    packed, padded = metrics(trained.out("qwen2-packed")), metrics(trained.out("qwen2-whole-epochs"))
    record_property("losses", list(zip(packed, padded, strict=True)))
    assert max(abs(one - other) for one, other in zip(packed, padded, strict=True)) < 1e-4
    assert packed[-1] < packed[0] - 1


def test_it_ends_where_the_tokens_are_reached(trained: Trained) -> None:
    name = "qwen2-until-tokens"
    end = last_step(trained.batches(name), options(name))
    counts = json.loads((trained.root / "out" / f"{name}.counts").read_text())
    batches = trained.batches(name)
    learned = [sum(int(batches.rows.learned[row]) for row in batches.batch_rows(step)) for step in range(end)]
    assert 1 < end < STEPS
    assert sum(learned[:-1]) < 3000 <= sum(learned)
    assert (counts["steps"], counts["tokens"], counts["sequences"]) == (end, sum(learned), end * 8)
    assert metrics(trained.out(name)) == metrics(trained.out("qwen2"))[:end]  # the schedule is that of all steps


def test_numbers_that_are_not_finite_stop_it_and_name_the_rows(trained: Trained) -> None:
    name = "qwen2-too-fast"
    said = (trained.root / "out" / f"{name}.error").read_text()
    batches = trained.batches(name)
    found = batches.rows.names(batches.batch_rows(1))
    assert said.startswith("step 2: the loss is not finite, with the rows ")
    assert "the checkpoint of step 1 is whole" in said
    assert all(row in said for row in found)
    assert not list(trained.out(name).iterdir())


def test_a_teachers_logits_are_learned(trained: Trained, record_property: Any) -> None:
    """The divergence before the first step is that of plain torch, and it falls."""
    batches = trained.batches("qwen2-of-a-teacher")
    student, teacher = (load(trained.root / "hf" / name) for name in ("qwen2", "teacher"))
    expected = divergence(student, teacher, batches.rows, batches.batch_rows(0))
    losses = metrics(trained.out("qwen2-of-a-teacher"))
    warm = divergence(student, teacher, batches.rows, batches.batch_rows(0), temperature=2.0)
    (found,) = metrics(trained.out("qwen2-of-a-warm-teacher"))
    record_property("divergence", [losses[0], expected, losses[-1], found, warm])
    assert abs(losses[0] - expected) < 1e-3
    assert losses[-1] < losses[0] / 2
    assert abs(found - warm) < 1e-3


def test_the_metrics_say_how_fast_it_was(trained: Trained) -> None:
    rows = [row for row in read_jsonl(trained.out("qwen2") / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert row["grad_norm"] > 0
        assert row["step_time"] > 0
        assert row["tokens_per_second_per_gpu"] > 0
        assert row["tflops_per_gpu"] > 0
    rates = [row["learning_rate"] for row in rows]
    assert max(rates) == pytest.approx(3e-3, rel=0.05)
    assert rates[-1] < 3e-3 / 5
