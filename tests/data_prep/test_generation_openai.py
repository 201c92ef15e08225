import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_proxy import FaultyProxy

from data_prep.generation import ChatRequest, OpenAIEngine, Sampling
from data_prep.generation.asking import GIVE_UP_AFTER, UnusableError, entry_of, whole_response
from data_prep.generation.journal import Journal
from reasonforge.errors import RequestError, StageError
from reasonforge.files import read_jsonl
from reasonforge.progress import Progress

Problems = list[dict[str, str]]

SAMPLING = Sampling(samples=2, max_tokens=8)
FAULTS = ("429", "500", "close", "503", "408", None)


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """`transformers serve` with the tiny model: its URL, and the model's name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(tiny_model), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=output, stderr=output, env=environment
        )
    try:
        while not healthy(port):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1", str(tiny_model)
    finally:
        process.kill()
        process.wait()


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
            return bool(answer.status == 200)
    except urllib.error.URLError:
        return False


def generate(engine: OpenAIEngine, problems: Problems, root: Path, sampling: Sampling = SAMPLING, seed: int = 0) -> Any:
    return engine.generate(
        problems,
        sampling,
        destination=root / "traces.jsonl",
        scratch=root / "scratch",
        seed=seed,
        progress=Progress,
    )


def test_first_tries_that_fail_are_tried_again(server: tuple[str, str], sums: Problems, tmp_path: Path) -> None:
    def fault(sample: int, tries: int) -> str | None:
        kinds = FAULTS[sample % len(FAULTS)], FAULTS[(sample + 1) % len(FAULTS)]
        return kinds[tries - 1] if tries <= 2 and kinds[0] else None

    url, model = server
    with FaultyProxy(url, fault) as proxy:
        engine = OpenAIEngine(base_url=proxy.url, model=model, concurrency=5, system_prompt="Think.")
        counts = generate(engine, sums, tmp_path)
    rows = list(read_jsonl(tmp_path / "traces.jsonl"))
    assert [row["id"] for row in rows] == [f"{problem['id']}/{sample}" for problem in sums for sample in range(2)]
    assert counts["samples"] == 24
    assert counts["completion_tokens"] == sum(row["completion_tokens"] for row in rows) > 0
    assert all(row["prompt_tokens"] > 10 and row["teacher"] == model for row in rows)
    assert all(row["completion_tokens"] == 8 for row in rows if row["finish_reason"] == "length")
    assert set(proxy.answered.values()) == {1}, "an answered sample was asked again"
    assert len(proxy.answered) == 24
    assert sum(proxy.tries.values()) > 24 + 16
    assert 2 <= proxy.most_together <= 5
    assert proxy.bodies[0]["messages"][0] == {"role": "system", "content": "Think."}  # type: ignore[index]
    assert len({body["seed"] for body in proxy.bodies}) == 24


def test_a_stalled_request_times_out_and_is_tried_again(
    server: tuple[str, str], sums: Problems, tmp_path: Path
) -> None:
    url, model = server
    with FaultyProxy(url, lambda sample, tries: "stall" if sample == 1 and tries == 1 else None) as proxy:
        generate(OpenAIEngine(base_url=proxy.url, model=model, timeout_s=1.5), sums[:2], tmp_path)
        assert len(proxy.answered) == 4
        assert sum(proxy.tries.values()) >= 5
    with FaultyProxy(url, lambda *_: "stall") as proxy:
        proxy.stall_s = 1.0
        engine = OpenAIEngine(base_url=proxy.url, model=model, timeout_s=0.2, max_retries=0)
        with pytest.raises(StageError, match=r"2 of 2 samples failed .* no answer within timeout_s, 0.2 s"):
            generate(engine, sums[:1], tmp_path / "late")


JOB = """
import json, sys
from pathlib import Path
from data_prep.generation import ChatRequest, OpenAIEngine, Sampling
from reasonforge.progress import Progress

root, engine, problems = Path(sys.argv[1]), OpenAIEngine(**json.loads(sys.argv[2])), json.loads(sys.argv[3])
engine.generate(problems, Sampling(samples=2, max_tokens=8), destination=root / "traces.jsonl",
                scratch=root / "scratch", seed=0, progress=Progress)
"""


def test_a_killed_job_repeats_nothing_that_it_journaled(
    server: tuple[str, str], sums: Problems, tmp_path: Path
) -> None:
    url, model = server
    journal = tmp_path / "scratch" / "journal.jsonl"
    with FaultyProxy(url, delay_s=0.2) as proxy:
        settings = {"base_url": proxy.url, "model": model, "concurrency": 2}
        job = subprocess.Popen(
            [sys.executable, "-c", JOB, str(tmp_path), json.dumps(settings), json.dumps(sums)],
            stderr=subprocess.DEVNULL,
        )
        while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
            assert job.poll() is None, "it finished before it could be killed"
            time.sleep(0.01)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        time.sleep(1)  # what was under way still reaches the server
        kept = journal.read_bytes()
        with open(journal, "ab") as torn:
            torn.write(b'{"key": "abc", "response": "to')
        again = OpenAIEngine(**settings)  # type: ignore[arg-type]
        before = proxy.tries.copy()
        generate(again, sums, tmp_path)
        repeated = proxy.tries - before
        assert sum(repeated.values()) == 24 - kept.count(b"\n")
        assert sum(proxy.answered.values()) <= 24 + 2, "more than the two requests under way were repeated"
        assert journal.read_bytes().startswith(kept)
        traces = (tmp_path / "traces.jsonl").read_bytes()
        generate(again, sums, tmp_path)
        assert (tmp_path / "traces.jsonl").read_bytes() == traces
        assert proxy.tries - before == repeated, "a finished job asked again"
    rows = list(read_jsonl(tmp_path / "traces.jsonl"))
    assert [row["id"] for row in rows] == [f"{problem['id']}/{sample}" for problem in sums for sample in range(2)]


def test_a_changed_request_never_takes_an_old_answer(server: tuple[str, str], sums: Problems, tmp_path: Path) -> None:
    url, model = server
    with FaultyProxy(url) as proxy:
        engine = OpenAIEngine(base_url=proxy.url, model=model)
        changes: list[dict[str, Any]] = [
            {},
            {"engine": engine.model_copy(update={"system_prompt": "Think."})},
            {"engine": engine.model_copy(update={"extra_body": {"logit_bias": {"5": 1.0}}})},
            {"engine": engine.model_copy(update={"send_seed": False})},
            {"sampling": SAMPLING.model_copy(update={"temperature": 0.5})},
            {"sampling": SAMPLING.model_copy(update={"max_tokens": 7})},
            {"seed": 1},
        ]
        for number, change in enumerate(changes, start=1):
            for _ in range(2):
                generate(**{"engine": engine, "problems": sums[:1], "root": tmp_path, **change})
            assert sum(proxy.answered.values()) == 2 * number
        generate(engine, sums[:1], tmp_path, Sampling(samples=3, max_tokens=8))
        assert sum(proxy.answered.values()) == 2 * len(changes) + 1, "only the third sample is new"


def test_any_requests_can_be_asked_in_order_and_equal_ones_once(server: tuple[str, str], tmp_path: Path) -> None:
    url, model = server
    texts = ["short", "a much longer question", "short", "another"]
    requests = [
        ChatRequest([{"role": "user", "content": text}], Sampling(max_tokens=4), seed=5, about={"place": place})
        for place, text in enumerate(texts)
    ]
    with FaultyProxy(url) as proxy:
        engine = OpenAIEngine(base_url=proxy.url, model=model, concurrency=1, system_prompt="for problems only")
        answers = list(engine.ask(requests, scratch=tmp_path, progress=Progress))
        assert list(engine.ask(requests, scratch=tmp_path, progress=Progress)) == answers
        asked = [body["messages"][-1]["content"] for body in proxy.bodies]  # type: ignore[index]
    assert asked == ["a much longer question", "another", "short"], "the longest first"
    assert [answer.completion_tokens for answer in answers] == [4] * 4
    assert answers[0] == answers[2]
    assert len(proxy.bodies[0]["messages"]) == 1  # type: ignore[arg-type]
    noted = [json.loads(line)["place"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert noted == [1, 3, 0]


def test_what_a_signal_raises_ends_the_asking(server: tuple[str, str], sums: Problems, tmp_path: Path) -> None:
    class ToldToStop(BaseException):
        pass

    def told(*_: object) -> None:
        raise ToldToStop

    url, model = server
    before = signal.signal(signal.SIGUSR2, told)
    try:
        with FaultyProxy(url, delay_s=0.2) as proxy:
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGUSR2)).start()
            with pytest.raises(ToldToStop):
                generate(OpenAIEngine(base_url=proxy.url, model=model, concurrency=1), sums, tmp_path)
            assert 0 < sum(proxy.answered.values()) < 24
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("chat")]


@pytest.mark.parametrize("status", ["400", "401", "403", "404"])
def test_a_refusal_stops_at_once_without_the_key(
    status: str, sums: Problems, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-very-secret")
    with FaultyProxy("http://127.0.0.1:1", lambda *_: status) as proxy:
        engine = OpenAIEngine(base_url=proxy.url, model="m", api_key_env="TEACHER_KEY", concurrency=1)
        with pytest.raises(RequestError) as caught:
            generate(engine, sums, tmp_path)
        assert sum(proxy.tries.values()) == 1
    message = str(caught.value)
    assert message.startswith(f"{proxy.url}: refused the request: Error code: {status}")
    assert "you sent Bearer ***" in message.replace("\\n", " ")
    assert "\n" not in message
    assert not any("sk-very" in path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def test_a_real_servers_refusal(server: tuple[str, str], sums: Problems, tmp_path: Path) -> None:
    url, model = server
    with pytest.raises(RequestError, match="refused the request"):
        generate(OpenAIEngine(base_url=url, model="another"), sums[:1], tmp_path)
    with pytest.raises(RequestError, match="refused the request"):
        generate(OpenAIEngine(base_url=url, model=model, extra_body={"no_such_field": 2}), sums[:1], tmp_path)


def test_a_key_that_is_not_set(sums: Problems, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    engine = OpenAIEngine(base_url="http://127.0.0.1:1/v1", model="m", api_key_env="TEACHER_KEY")
    with pytest.raises(RequestError, match=r"^environment variable TEACHER_KEY: not set"):
        generate(engine, sums, tmp_path)


def test_what_fails_for_good_is_told_and_the_rest_is_kept(
    server: tuple[str, str], sums: Problems, tmp_path: Path
) -> None:
    url, model = server
    with FaultyProxy(url, lambda sample, _: ("500", "html", "abort", None)[sample % 4]) as proxy:
        engine = OpenAIEngine(base_url=proxy.url, model=model, max_retries=0, concurrency=1)
        with pytest.raises(StageError) as caught:
            generate(engine, sums, tmp_path)
        assert "18 of 24 samples failed after 0 retries each, the first with: Error code: 500" in str(caught.value)
        assert "the 6 that were answered are kept" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "traces.jsonl").exists()
        proxy.fault = lambda *_: None
        assert generate(engine, sums, tmp_path)["samples"] == 24
        assert set(proxy.answered.values()) == {1}


def test_a_dead_endpoint_is_given_up(sums: Problems, tmp_path: Path) -> None:
    with FaultyProxy("http://127.0.0.1:1", lambda *_: "close") as proxy:
        engine = OpenAIEngine(base_url=proxy.url, model="m", max_retries=0, concurrency=4)
        with pytest.raises(StageError, match="Connection error"):
            generate(engine, sums, tmp_path, Sampling(samples=50))
        assert GIVE_UP_AFTER <= sum(proxy.tries.values()) <= GIVE_UP_AFTER + 4


@pytest.mark.parametrize(
    ("content", "thinking", "finish_reason", "expected"),
    [
        ("<think>\na\n</think>\nb", "", "stop", "<think>\na\n</think>\nb"),
        ("\n\nb", "a\n", "stop", "<think>\na\n</think>\n\nb"),
        ("", "a", "length", "<think>\na"),
        ("b", "a", "length", "<think>\na\n</think>\n\nb"),
        ("", "a", "stop", "<think>\na\n</think>\n\n"),
        ("a\n</think>\nb", "", "stop", "<think>\na\n</think>\nb"),
        ("plain", "", "stop", "plain"),
        ("half \ud800", "", "stop", "half ?"),
    ],
)
def test_thinking_goes_into_the_response(content: str, thinking: str, finish_reason: str, expected: str) -> None:
    assert whole_response(content, thinking, finish_reason) == expected


def test_thinking_is_read_under_both_its_names_and_an_odd_answer_is_refused() -> None:
    from openai.types.chat import ChatCompletion

    for name in ("reasoning_content", "reasoning"):
        message = {"role": "assistant", "content": "b", name: "a"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        body = {"id": "1", "created": 1, "model": "m", "object": "chat.completion", "choices": [choice]}
        entry = entry_of(ChatCompletion.model_validate(body))
        assert entry["response"] == "<think>\na\n</think>\n\nb"
        assert entry["completion_tokens"] is None
    with pytest.raises(UnusableError, match="not a chat completion"):
        entry_of(ChatCompletion.model_construct(choices=[]))


def test_a_journal_loses_only_its_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append("a", {"n": 1})
        journal.append("b", {"n": 2, "text": "ü\n"})
    whole = path.read_bytes()
    for cut in range(len(whole.splitlines(keepends=True)[0]), len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path) as journal:
            assert len(journal) == 1
            assert "b" not in journal
            journal.append("b", {"n": 2, "text": "ü\n"})
            assert journal.read("b") == {"key": "b", "n": 2, "text": "ü\n"}
        assert path.read_bytes() == whole
    path.write_bytes(b"{broken\n" + whole)
    with pytest.raises(RequestError, match=r"journal.jsonl:1: not an entry of the journal"):
        Journal(path)
