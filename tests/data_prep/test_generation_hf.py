import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.generation import HFEngine, Sampling
from data_prep.generation.hf import _in_order, _units
from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl, write_jsonl
from reasonforge.progress import Progress

MakeProgress = Callable[[str, int, str], Progress]
Problems = list[dict[str, str]]

RESPONSE = "<think>\na+3:9+3=12\n</think>\n\\boxed{12}"


def generate(root: Path, problems: Problems, engine: HFEngine, sampling: Sampling, **options: Any) -> list[Any]:
    arguments = {"scratch": root / "scratch", "seed": 0, "progress": Progress, **options}
    engine.generate(problems, sampling, destination=root / "traces.jsonl", **arguments)
    return list(read_jsonl(root / "traces.jsonl"))


@pytest.fixture(scope="module")
def knowing_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after it has learned one response by heart; its thinking tags are special tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    messages = [{"role": "user", "content": "Start: 9\na+3"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = torch.tensor([tokenizer(prompt + RESPONSE + tokenizer.eos_token)["input_ids"]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(0)
    for _ in range(100):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    directory = tmp_path_factory.mktemp("knowing-model")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_a_learned_response_comes_back_whole(knowing_model: Path, tmp_path: Path) -> None:
    problems = [{"id": "p", "prompt": "Start: 9\na+3", "answer": "12", "level": "easy"}]
    engine = HFEngine(model_path=str(knowing_model))
    [row] = generate(tmp_path, problems, engine, Sampling(temperature=0, max_tokens=60))
    assert row["response"] == RESPONSE
    assert (row["finish_reason"], row["teacher"], row["level"]) == ("stop", knowing_model.name, "easy")
    [cut] = generate(tmp_path / "cut", problems, engine, Sampling(temperature=0, max_tokens=5))
    assert RESPONSE.startswith(cut["response"])
    assert (cut["finish_reason"], cut["completion_tokens"]) == ("length", 5)
    assert row["prompt_tokens"] == cut["prompt_tokens"] > 10
    exact = row["completion_tokens"]
    [again] = generate(tmp_path / "exact", problems, engine, Sampling(temperature=0, max_tokens=exact))
    assert (again["response"], again["finish_reason"]) == (RESPONSE, "stop")


def test_a_template_that_opens_the_thinking_shows_in_the_response(knowing_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(knowing_model, model)
    template = (model / "chat_template.jinja").read_text()
    opened = template.replace("<|im_start|>assistant\\n'", "<|im_start|>assistant\\n<think>\\n'")
    (model / "chat_template.jinja").write_text(opened)
    problems = [{"id": "p", "prompt": "Start: 9\na+3", "answer": "12"}]
    [row] = generate(
        tmp_path, problems, HFEngine(), Sampling(temperature=0, max_tokens=60), model=model, scratch=tmp_path / "s"
    )
    assert row["response"] == RESPONSE


def test_order_samples_and_counts(tiny_model: Path, tmp_path: Path, sums: Problems) -> None:
    sampling = Sampling(samples=3, max_tokens=6)
    rows = generate(tmp_path, sums, HFEngine(batch_size=8), sampling, model=tiny_model)
    assert [row["id"] for row in rows] == [f"{problem['id']}/{sample}" for problem in sums for sample in range(3)]
    assert len({row["response"] for row in rows}) > 12, "samples of one problem differ"
    again = generate(tmp_path / "again", sums, HFEngine(batch_size=8), sampling, model=tiny_model)
    other = generate(tmp_path / "other", sums, HFEngine(batch_size=8), sampling, model=tiny_model, seed=1)
    assert again == rows
    assert other != rows


def test_temperature_zero_is_greedy_whatever_the_model_configures(
    tiny_model: Path, tmp_path: Path, sums: Problems
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    path = model / "generation_config.json"
    own = json.loads(path.read_text()) | {"do_sample": True, "temperature": 3.0, "top_k": 5, "repetition_penalty": 5.0}
    path.write_text(json.dumps(own))
    greedy = Sampling(samples=2, temperature=0, max_tokens=6)
    rows = generate(tmp_path, sums, HFEngine(), greedy, model=model)
    plain = generate(tmp_path / "plain", sums, HFEngine(), greedy, model=tiny_model)
    assert [row["response"] for row in rows] == [row["response"] for row in plain]
    assert all(a["response"] == b["response"] for a, b in zip(rows[::2], rows[1::2], strict=True))


def test_every_end_token_of_the_generation_config_ends_a_response(
    tiny_model: Path, tmp_path: Path, sums: Problems
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    path = model / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": list(range(150))}))
    rows = generate(tmp_path, sums, HFEngine(), Sampling(samples=4, max_tokens=8), model=model)
    stopped = [row for row in rows if row["finish_reason"] == "stop"]
    assert len(stopped) > len(rows) / 2
    assert len({row["completion_tokens"] for row in stopped}) > 1
    assert all(row["completion_tokens"] == 8 for row in rows if row["finish_reason"] == "length")


JOB = """
import json, sys
from pathlib import Path
from data_prep.generation import HFEngine, Sampling
from reasonforge.progress import Progress

root = Path(sys.argv[1])
HFEngine(batch_size=4).generate(
    json.loads(sys.argv[3]), Sampling(samples=6, max_tokens=40),
    destination=root / "traces.jsonl", scratch=root / "scratch", seed=0, progress=Progress, model=Path(sys.argv[2]),
)
"""


def test_killed_it_gives_the_same_bytes(tiny_model: Path, tmp_path: Path, sums: Problems) -> None:
    command = [sys.executable, "-c", JOB, str(tmp_path), str(tiny_model), json.dumps(sums)]
    job = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while len(list(tmp_path.glob("scratch/unit-*.jsonl"))) < 3:
        assert job.poll() is None, "it finished before it could be killed"
        time.sleep(0.005)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    assert not (tmp_path / "traces.jsonl").exists()
    sampling = Sampling(samples=6, max_tokens=40)
    generate(tmp_path, sums, HFEngine(batch_size=4), sampling, model=tiny_model)
    generate(tmp_path / "whole", sums, HFEngine(batch_size=4), sampling, model=tiny_model)
    assert (tmp_path / "traces.jsonl").read_bytes() == (tmp_path / "whole" / "traces.jsonl").read_bytes()


@pytest.mark.parametrize(("samples", "batch_size"), [(1, 7), (3, 7), (16, 256), (5000, 64)])
def test_batches_cover_everything_once_and_merge_in_order(tmp_path: Path, samples: int, batch_size: int) -> None:
    prompts = ["x" * (7 * n % 11) for n in range(30 if samples < 100 else 2)]
    units = list(_units(prompts, samples, batch_size))
    assert max(map(len, units)) <= batch_size
    paths = [tmp_path / f"{index}.jsonl" for index in range(len(units))]
    for unit, path in zip(units, paths, strict=True):
        write_jsonl(path, ({"name": list(name)} for name in unit))
    merged = [tuple(row["name"]) for row in _in_order(units, paths)]
    assert merged == [(index, sample) for index in range(len(prompts)) for sample in range(samples)]


def test_models_that_cannot_be_used_are_named_in_one_line(
    tiny_model: Path, tmp_path: Path, sums: Problems, progress: MakeProgress
) -> None:
    bare, silent, long = tmp_path / "bare", tmp_path / "silent", Sampling(max_tokens=500)
    for copy in (bare, silent):
        shutil.copytree(tiny_model, copy)
    for path in bare.glob("*token*"):
        path.unlink()
    (silent / "chat_template.jinja").unlink()
    cases = [
        (None, Sampling(), "engine.model_path: not given"),
        (tmp_path / "none", Sampling(), "no such model directory"),
        (bare, Sampling(), "its tokenizer has no vocabulary"),
        (silent, Sampling(), "its tokenizer has no chat template"),
        (tiny_model, long, "are more than the 512 positions of the model; set max_tokens to"),
    ]
    for model, sampling, expected in cases:
        with pytest.raises(RequestError) as caught:
            generate(tmp_path / "out", sums, HFEngine(), sampling, model=model, progress=progress)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "traces.jsonl").exists()
