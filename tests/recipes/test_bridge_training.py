"""The `megatron_bridge` engine trains in the real Megatron-Bridge as plain transformers does: losses side by side, on
the CPU. The whole way is walked: Hugging Face, our import, Bridge's own loop on our tokens, our export, Hugging Face.

One process of Bridge does all trainings (training_side.py), for importing it takes most of the time.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from bridge_place import bridge_python, start_bridge
from nemo_runs import (
    OPTIONS,
    SIDE,
    batch_loss,
    build_model,
    build_tokens,
    check_cut_off,
    counter,
    cut_off_twice,
    divergence,
    export,
    load,
    metrics,
    open_rows,
    train_plainly,
)

from checkpoints_conversion.importing import ImportOptions, import_checkpoint
from reasonforge.files import read_jsonl
from recipes.engines.megatron.batches import Batches, last_step, training_batches
from recipes.engines.megatron_bridge.data import Sequences
from recipes.engines.megatron_bridge.options import MegatronBridgeEngine

pytestmark = pytest.mark.xdist_group("bridge")

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
    "padded": {"steps": 3},
    "trained-already": {"steps": 1, "warmup_steps": 0},
}  # fmt: skip
CUT_OFF = ("qwen2-adapters", "qwen2-of-a-teacher")
"""What loses its end, and trains it again, twice."""


@dataclass(frozen=True)
class Trained:
    """What Bridge trained: `hf` and `bridge` models before, `out` after, and the tokens."""

    root: Path

    def out(self, name: str) -> Path:
        return self.root / "out" / name

    def batches(self, name: str) -> Batches:
        return training_batches(self.rows("tokens"), options(name), seed=1)

    def rows(self, tokens: str) -> Any:
        return open_rows(self.root / "tokens" / f"{tokens}.parquet", self.root / "flat" / tokens)


def options(name: str) -> MegatronBridgeEngine:
    return MegatronBridgeEngine.model_validate(
        {**OPTIONS, "type": "megatron_bridge", "steps": STEPS, **TRAININGS[name]}
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    bridge_python()
    root = tmp_path_factory.mktemp("bridge-training")
    for number, family in enumerate(("qwen2", "llama")):
        build_model(root, family, family, number, "bridge")
    build_model(root, "teacher", "qwen2", 7, "bridge")
    padded = ImportOptions(directory="bridge", layer_spec="local", vocabulary_multiple=128)
    import_checkpoint(root / "hf/qwen2", root / "bridge/padded", padded, 1, counter)
    build_tokens(root / "hf/qwen2", root / "tokens", ROWS, HELD_OUT)
    models = {name: root / "bridge" / name.partition("-")[0] for name in TRAININGS}
    jobs = [
        {
            "name": name,
            "model": str({**models, "trained-already": root / "out/qwen2"}[name]),
            "teacher": str(root / "bridge/teacher") if "distillation" in changes else None,
            "tokens": str(root / "tokens"),
            "engine": options(name).model_dump(mode="json"),
            "scratch": str(root / "scratch" / name),
            "out": str(root / "out" / name),
            "seed": 1,
        }
        for name, changes in TRAININGS.items()
    ]
    (root / "job.json").write_text(json.dumps(jobs + cut_off_twice(jobs, CUT_OFF)))
    log = root / "bridge.log"
    process = start_bridge(root, log, SIDE, root / "job.json", WITHOUT_CUDA_MORE="bridge_without_te")
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
def test_the_exported_model_has_bridges_validation_loss(
    name: str, trained: Trained, tmp_path: Path, record_property: Any
) -> None:
    """Over all held-out rows, though they do not fill the last batch."""
    exported = load(export(trained.out(name), tmp_path / "hf"))
    rows = trained.rows("held_out")
    with torch.no_grad():
        loss = batch_loss(exported, rows, list(range(len(rows)))).item()
    found = metrics(trained.out(name), "eval_loss")
    record_property("losses", [found[-1], loss])
    assert len(found) == STEPS // 10
    assert abs(found[-1] - loss) < 1e-3
    assert found[-1] < found[0]


def test_the_directory_is_one_of_bridge_and_tells_of_the_model_alone(trained: Trained) -> None:
    """What was trained can be trained on, and says of the model what the directory that went in said."""
    [before], [after] = ((trained.root / place).glob("iter_*") for place in ("bridge/qwen2", "out/qwen2"))
    assert after.name == f"iter_{STEPS:07d}"
    assert (after / "run_config.yaml").read_bytes() == (before / "run_config.yaml").read_bytes()
    assert (trained.out("qwen2") / "latest_checkpointed_iteration.txt").read_text() == str(STEPS)
    state = torch.load(trained.out("qwen2") / "latest_train_state.pt", weights_only=True)
    assert state["step"] == STEPS
    assert not list(trained.out("qwen2-of-a-teacher").rglob("modelopt*"))
    for name in TRAININGS:
        assert not list(trained.out(name).rglob("*optimizer*"))


def test_what_was_trained_is_trained_on(trained: Trained, tmp_path: Path) -> None:
    exported = load(export(trained.out("qwen2"), tmp_path / "hf"))
    batches = trained.batches("trained-already")
    with torch.no_grad():
        expected = batch_loss(exported, batches.rows, batches.batch_rows(0)).item()
    [found] = metrics(trained.out("trained-already"))
    assert abs(found - expected) < 1e-3


def test_a_padded_vocabulary_is_trained_and_goes_away(trained: Trained, tmp_path: Path) -> None:
    [weights] = trained.out("padded").glob("iter_*")
    assert yaml.safe_load((weights / "run_config.yaml").read_text())["model"]["should_pad_vocab"]
    after = load(export(trained.out("padded"), tmp_path / "hf"))
    before = load(trained.root / "hf/qwen2")
    assert after.model.embed_tokens.weight.shape == before.model.embed_tokens.weight.shape == (300, 64)
    assert not torch.equal(after.model.embed_tokens.weight, before.model.embed_tokens.weight)


def test_adapters_alone_are_trained(trained: Trained, tmp_path: Path) -> None:
    """What has none is as it was, bit for bit; what has one is not."""
    after = dict(load(export(trained.out("qwen2-adapters"), tmp_path / "hf")).named_parameters())
    before = dict(load(trained.root / "hf/qwen2").named_parameters())
    moved = {name for name, parameter in before.items() if not torch.equal(parameter, after[name])}
    matrices = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert moved == {name for name in before if name.split(".")[-2] in matrices and name.endswith(".weight")}


def test_micro_batches_padding_and_shared_optimizers_change_nothing(trained: Trained) -> None:
    """Each token of the batch weighs the same, however the batch is divided and padded."""
    for key in ("loss", "eval_loss"):
        one, other = metrics(trained.out("qwen2"), key), metrics(trained.out("qwen2-in-small-parts"), key)
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-4


@pytest.mark.parametrize("name", CUT_OFF)
def test_a_training_that_is_cut_off_ends_as_if_nothing_had_been(name: str, trained: Trained, tmp_path: Path) -> None:
    check_cut_off(trained.root, name, tmp_path)


def test_copies_of_the_model_take_turns_in_runs(trained: Trained) -> None:
    """Bridge gives each of two copies every second sequence of a batch; a micro-batch is a run of it all the same."""
    batches = trained.batches("qwen2")
    sequences = Sequences(batches, copies=2, micro_batch_size=2, mask=False)
    for batch in range(2):
        for copy, expected in enumerate(([0, 1, 4, 5], [2, 3, 6, 7])):
            dealt = [sequences[batch * 8 + place]["tokens"] for place in range(copy, 8, 2)]
            found = [batches[batch * 8 + place]["tokens"] for place in expected]
            assert all((one == other).all() for one, other in zip(dealt, found, strict=True))


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
    batches = trained.batches(name)
    end = last_step(batches, options(name))
    counts = json.loads((trained.root / "out" / f"{name}.counts").read_text())
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
