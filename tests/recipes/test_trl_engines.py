"""TRL's trainers through our engines, for a few steps of a real tiny model: learning, options, kills and resumption."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from desk import QUIET, until

from data_prep.sources.problems import RunningSumSource
from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl
from reasonforge.progress import Progress
from recipes.engines.trl_common import last_whole_checkpoint
from recipes.engines.trl_grpo import TRLGRPO, ReferenceSync
from recipes.engines.trl_sft import TRLSFT

pytestmark = pytest.mark.xdist_group("trl")
ROOT = Path(__file__).parents[2]
SFT = TRLSFT(steps=22, batch_size=8, learning_rate=1e-2, save_every=5, log_every=4)
GRPO = TRLGRPO(
    steps=6, prompts=4, group_size=4, max_completion_tokens=12, mask_truncated=False, learning_rate=1e-2, save_every=2,
    log_every=1,
)  # fmt: skip
SYNCED = GRPO.model_copy(update={"kl_coefficient": 0.1, "sync_reference": ReferenceSync(every=2, mix=0.5)})


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with problems.jsonl, an untrained model of 20 k parameters, and tokens.parquet of its answers."""
    import torch

    from data_prep.tokenization.dataset import tokenize_rows
    from reasonforge.files import write_jsonl
    from recipes.engines.scratch import TinyModel

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("student")
    problems = RunningSumSource(train=60, eval=1).make(0).train
    write_jsonl(root / "problems.jsonl", problems)
    answers = [f"<think>\n</think>\n\\boxed{{{row['answer']}}}" for row in problems]
    turns = zip((row["prompt"] for row in problems), answers, strict=True)
    TinyModel(layers=2, hidden_size=32, ffn_size=64).build(turns, root / "model", 0)
    rows = [{**row, "response": answer} for row, answer in zip(problems, answers, strict=True)]
    tokenize_rows(rows, root / "model", root / "tokens.parquet", max_tokens=200)
    return root


def distinct(completions: Sequence[Any], **_: Any) -> list[float]:
    """A reward that an untrained model's samples differ in: how many different characters there are."""
    return [float(len(set(completion[0]["content"]))) for completion in completions]


def train(engine: TRLSFT | TRLGRPO, student: Path, folder: Path) -> dict[str, Any]:
    """Train in `folder`, going on from what is there; as a process of its own this is what gets killed."""
    (folder / "scratch").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "out", ignore_errors=True)
    where: dict[str, Any] = {
        "scratch": folder / "scratch",
        "out": folder / "out",
        "seed": 1,
        "progress": lambda title, total, unit: Progress(title, total, unit, folder / "progress.json"),
    }
    if isinstance(engine, TRLSFT):
        return engine.train(student / "model", student / "tokens.parquet", **where)
    problems = list(read_jsonl(student / "problems.jsonl"))
    return engine.train(student / "model", problems, [distinct], [1.0], **where)


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "out" / "model.safetensors"))


def difference(one: Path, other: Path) -> float:
    """The largest difference between two trained models' weights."""
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(folder / "out" / "metrics.jsonl"))


@pytest.fixture(scope="session")
def taught(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed supervised training."""
    folder = tmp_path_factory.mktemp("taught")
    counts = train(SFT, student, folder)
    assert counts == {"steps": 22, "sequences": 176, "loss": metrics(folder)[-1]["loss"]}
    return folder


@pytest.fixture(scope="session")
def reinforced(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed reinforcement."""
    folder = tmp_path_factory.mktemp("reinforced")
    counts = train(GRPO, student, folder)
    assert counts == {"steps": 6, "completions": 96, "reward": metrics(folder)[-1]["reward"]}
    return folder


def resumed(engine: TRLSFT | TRLGRPO, student: Path, whole: Path, folder: Path, *, torn_from: int) -> None:
    """Train again from an undisturbed training's checkpoints, of which those from a step on were not saved whole."""
    shutil.copytree(whole, folder)
    for checkpoint in (folder / "scratch" / "trainer").glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) >= torn_from:
            (checkpoint / "complete").unlink()
            (checkpoint / "model.safetensors").write_bytes(b"torn")
    train(engine, student, folder)


def test_supervised_training_learns_and_keeps_the_tokenizer(student: Path, taught: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = metrics(taught)
    assert [row["step"] for row in rows] == [4, 8, 12, 16, 20, 22]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert all(row["time"] > 0 and row["learning_rate"] > 0 and row["num_tokens"] > 0 for row in rows)
    assert list(read_jsonl(taught / "scratch" / "metrics.jsonl")) == rows
    progress = json.loads((taught / "progress.json").read_text())
    assert (progress["done"], progress["total"], progress["unit"]) == (22, 22, "steps")
    assert progress["note"] == f"loss {rows[-1]['loss']:.3f}"
    trained = AutoTokenizer.from_pretrained(taught / "out", local_files_only=True)
    before = AutoTokenizer.from_pretrained(student / "model", local_files_only=True)
    assert trained.chat_template == before.chat_template
    assert trained.get_vocab() == before.get_vocab()
    assert trained.eos_token == before.eos_token
    model = AutoModelForCausalLM.from_pretrained(taught / "out", local_files_only=True)
    assert str(model.dtype) == "torch.float32"
    text = trained.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True)
    ids = trained(text, return_tensors="pt", add_special_tokens=False).input_ids
    answer = trained.decode(model.generate(ids, max_new_tokens=8, do_sample=False)[0][ids.shape[1] :])
    assert answer.startswith("<think>")


@pytest.mark.parametrize("torn_from", [23, 22, 20])
def test_supervised_training_resumes_exactly(student: Path, taught: Path, tmp_path: Path, torn_from: int) -> None:
    resumed(SFT, student, taught, tmp_path / "again", torn_from=torn_from)
    assert difference(taught, tmp_path / "again") == 0
    assert [row["step"] for row in metrics(tmp_path / "again")] == [row["step"] for row in metrics(taught)]


def test_a_micro_batch_changes_nothing_but_memory(student: Path, taught: Path, tmp_path: Path) -> None:
    train(SFT.model_copy(update={"micro_batch_size": 2, "save_every": 100}), student, tmp_path)
    assert difference(taught, tmp_path) < 1e-4
    assert metrics(tmp_path)[-1]["loss"] == pytest.approx(metrics(taught)[-1]["loss"], rel=1e-3)


def test_few_steps_have_a_line_of_metrics(student: Path, tmp_path: Path) -> None:
    train(TRLSFT(steps=3, batch_size=4, learning_rate=1e-3), student, tmp_path)
    assert [row["step"] for row in metrics(tmp_path)] == [3]


def test_reinforcement_learns(reinforced: Path) -> None:
    rows = metrics(reinforced)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all({"loss", "reward", "reward_std", "completions/mean_length", "entropy"} <= row.keys() for row in rows)
    assert all(row["reward_std"] > 0 for row in rows)
    assert rows[0]["rewards/distinct/mean"] == rows[0]["reward"]
    assert (reinforced / "out" / "chat_template.jinja").exists()


@pytest.mark.parametrize("torn_from", [7, 6])
def test_reinforcement_resumes_exactly(student: Path, reinforced: Path, tmp_path: Path, torn_from: int) -> None:
    resumed(GRPO, student, reinforced, tmp_path / "again", torn_from=torn_from)
    assert difference(reinforced, tmp_path / "again") == 0
    kept = ("step", "reward", "completions/mean_length", "num_tokens")
    assert [[row[name] for name in kept] for row in metrics(tmp_path / "again")] == [
        [row[name] for name in kept] for row in metrics(reinforced)
    ]


def test_reinforcement_with_a_synced_reference_resumes_exactly(student: Path, tmp_path: Path) -> None:
    train(SYNCED, student, tmp_path / "whole")
    rows = metrics(tmp_path / "whole")
    assert rows[0]["kl"] == 0
    assert all(row["kl"] > 0 for row in rows[1:])
    unsynced = SYNCED.model_copy(update={"sync_reference": None})
    train(unsynced, student, tmp_path / "unsynced")
    assert metrics(tmp_path / "unsynced")[-1]["kl"] > rows[-1]["kl"], "the reference has followed"
    resumed(SYNCED, student, tmp_path / "whole", tmp_path / "again", torn_from=6)
    assert difference(tmp_path / "whole", tmp_path / "again") == 0


def test_several_updates_a_generation(student: Path, tmp_path: Path) -> None:
    engine = GRPO.model_copy(update={"updates": 2, "steps": 5})
    counts = train(engine, student, tmp_path / "whole")
    assert counts["completions"] == 3 * 16
    resumed(engine, student, tmp_path / "whole", tmp_path / "again", torn_from=5)
    assert difference(tmp_path / "whole", tmp_path / "again") == 0


def test_more_prompts_than_problems_are_refused(student: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match=r"^engine\.prompts = 64: a generation takes more problems than the 60 there"
    ):
        train(GRPO.model_copy(update={"prompts": 64}), student, tmp_path)


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import test_trl_engines as tests
tests.train(getattr(tests, sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
"""


@pytest.mark.parametrize("name", ["SFT", "GRPO"])
def test_a_killed_training_goes_on(name: str, student: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    engine = {"SFT": SFT, "GRPO": GRPO}[name]
    whole: Path = request.getfixturevalue({"SFT": "taught", "GRPO": "reinforced"}[name])
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, script, Path(__file__).parent, name, student, folder],
        env={**os.environ, **QUIET, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        stderr=subprocess.DEVNULL,
    )
    marks = folder / "scratch" / "trainer"
    until(lambda: bool(list(marks.glob("checkpoint-*/complete"))) or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "out").exists()
    found = last_whole_checkpoint(marks)
    assert found is not None
    train(engine, student, folder)
    assert difference(whole, folder) == 0
    assert [row["step"] for row in metrics(folder)] == [row["step"] for row in metrics(whole)]


def test_a_checkpoint_without_its_mark_is_none(tmp_path: Path) -> None:
    for step, whole in ((5, True), (10, True), (15, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").touch()
        if whole:
            (tmp_path / f"checkpoint-{step}" / "complete").touch()
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-5"]
    assert last_whole_checkpoint(tmp_path / "absent") is None


COMMON = {
    "steps": ("max_steps", 6),
    "learning_rate": ("learning_rate", 3e-5),
    "min_learning_rate_ratio": ("lr_scheduler_kwargs", {"min_lr_rate": 0.25}),
    "warmup_steps": ("warmup_steps", 2),
    "adam_beta1": ("adam_beta1", 0.8),
    "adam_beta2": ("adam_beta2", 0.97),
    "weight_decay": ("weight_decay", 0.01),
    "max_grad_norm": ("max_grad_norm", 0.5),
    "gradient_checkpointing": ("gradient_checkpointing", True),
    "save_every": ("save_steps", 4),
    "log_every": ("logging_steps", 3),
}
REINFORCEMENT = {
    "group_size": ("num_generations", 4),
    "max_completion_tokens": ("max_completion_length", 77),
    "mask_truncated": ("mask_truncated_completions", False),
    "temperature": ("temperature", 0.7),
    "clip_low": ("epsilon", 0.11),
    "clip_high": ("epsilon_high", 0.33),
    "loss_type": ("loss_type", "dr_grpo"),
    "scale_rewards": ("scale_rewards", "none"),
    "kl_coefficient": ("beta", 0.04),
}
ELSEWHERE = {"type", "prompts", "updates", "micro_batch_size", "sync_reference", "log_to"}
"""Options of TRLGRPO that are checked one by one below."""


def test_no_option_is_lost(tmp_path: Path) -> None:
    assert COMMON.keys() | REINFORCEMENT.keys() | ELSEWHERE == set(TRLGRPO.model_fields), "an option has no check here"
    given = {name: value for name, (_, value) in {**COMMON, **REINFORCEMENT}.items()}
    given |= {"min_learning_rate_ratio": 0.25, "prompts": 6, "updates": 2, "micro_batch_size": 3}
    engine = TRLGRPO(**given, sync_reference=ReferenceSync(every=5, mix=0.3), log_to=("wandb", "tensorboard"))
    found = engine._arguments(tmp_path, 9, [1.0, 0.5])
    for name, (theirs, value) in {**COMMON, **REINFORCEMENT}.items():
        assert getattr(found, theirs) == value, name
        assert TRLGRPO.model_fields[name].default != given[name], f"{name} is at its default, so this shows nothing"
    assert found.seed == 9
    assert found.reward_weights == [1.0, 0.5]
    assert (found.sync_ref_model, found.ref_model_sync_steps, found.ref_model_mixup_alpha) == (True, 5, 0.3)
    assert found.per_device_train_batch_size == 3
    assert found.gradient_accumulation_steps == 4  # 6 prompts x 4 completions in 2 updates of 12
    assert found.steps_per_generation == 8
    assert found.generation_batch_size == 24
    assert found.report_to == ["wandb"], "the TensorBoard writer is ours"
    assert found.lr_scheduler_type == "cosine_with_min_lr"
    assert TRLGRPO(steps=1, max_completion_tokens=1)._arguments(tmp_path, 0, [1.0]).sync_ref_model is False


def test_metrics_go_to_tensorboard_too(student: Path, tmp_path: Path) -> None:
    engine = TRLSFT(steps=2, batch_size=4, learning_rate=1e-3, log_to=("tensorboard",))
    train(engine, student, tmp_path)
    assert list((tmp_path / "out" / "tensorboard").glob("events.out.*"))
