"""Servers of our own: started, killed, hung, late, dead, on a taken port; and what is left behind, which is nothing."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from killing import ROOT
from server_runs import GREEDY, STAGE, Problems, below, engine, generate, journaled, servers, wordy

from data_prep.generation import serving
from data_prep.generation.gpus import find_gpus, split_gpus
from reasonforge.errors import RequestError, StageError
from reasonforge.files import read_jsonl
from reasonforge.processes import start_guarded


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wordy(tiny_model, tmp_path_factory.mktemp("models") / "wordy")


@pytest.fixture(autouse=True)
def nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(serving, "GRACE_S", 3.0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in (
        "http_proxy",
        "HTTP_PROXY",
        "all_proxy",
    ):  # clusters have one, and servers of our own are not behind it
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    yield
    assert not servers(os.getpid())


@pytest.fixture(scope="module")
def undisturbed(model: Path, sums: Problems, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The traces of a run that nothing happened to."""
    root = tmp_path_factory.mktemp("undisturbed")
    counts = generate(engine(model), sums, root)
    assert counts["samples"] == 36
    rows = list(read_jsonl(root / "traces.jsonl"))
    assert [row["id"] for row in rows] == [f"{problem['id']}/{sample}" for problem in sums for sample in range(3)]
    assert len({row["response"] for row in rows}) > 6
    assert {row["teacher"] for row in rows} == {"wordy"}
    for number in range(2):
        log = (root / "scratch" / "servers" / f"server-{number}.log").read_text()
        assert "--served-model-name wordy" in log
        assert log.count("POST /v1/chat/completions") > 4, "one server did all the work"
    return (root / "traces.jsonl").read_bytes()


def when_at_work(root: Path, replicas: int, act: Callable[[], object]) -> threading.Thread:
    """Do something, in another thread, as soon as each server has answered."""

    def wait() -> None:
        while not all("POST /v1" in log.read_text() for log in logs) or len(journaled(root)) < 6:
            time.sleep(0.01)
        act()

    logs = [root / "scratch" / "servers" / f"server-{number}.log" for number in range(replicas)]
    for log in logs:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_a_server_that_ends_or_hangs_is_started_again(
    number: signal.Signals,
    model: Path,
    sums: Problems,
    undisturbed: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "PROBE_S", 0.5)
    thread = when_at_work(tmp_path, 2, lambda: servers(os.getpid())[0].send_signal(number))
    generate(engine(model, silence_s=2.0), sums, tmp_path)
    thread.join()
    assert (tmp_path / "traces.jsonl").read_bytes() == undisturbed
    assert set(Counter(journaled(tmp_path)).values()) == {1}
    logs = [path.read_text() for path in sorted((tmp_path / "scratch" / "servers").iterdir())]
    assert sorted(log.count("--served-model-name") for log in logs) == [1, 2]


def test_a_server_that_keeps_ending_is_given_up(model: Path, sums: Problems, tmp_path: Path) -> None:
    thread = when_at_work(tmp_path, 1, lambda: servers(os.getpid())[0].kill())
    with pytest.raises(StageError, match=r"server 0 of 1 ended with exit code 137, 1 times in a row; .*server-0.log"):
        generate(engine(model, replicas=1, restarts=0), sums, tmp_path)
    thread.join()
    assert len(journaled(tmp_path)) >= 6
    assert not (tmp_path / "traces.jsonl").exists()


def test_a_stage_that_is_killed_or_told_to_stop_goes_on(
    model: Path, sums: Problems, undisturbed: bytes, tmp_path: Path
) -> None:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in sums))
    options = {"engine": engine(model).model_dump(mode="json"), "sampling": GREEDY.model_dump(mode="json")}
    command = [sys.executable, "-c", STAGE, str(tmp_path), str(tmp_path), json.dumps(options)]
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 85), (None, 0)):
        before = (tmp_path / "scratch" / "journal.jsonl").read_bytes() if number is not signal.SIGKILL else b""
        stage = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
        )
        started: list[psutil.Process] = []
        while number and len(journaled(tmp_path)) < before.count(b"\n") + 6:
            assert stage.poll() is None, stage.communicate()
            time.sleep(0.01)
        if number:
            started = below(stage.pid)
            assert len(servers(stage.pid)) == 2
            stage.send_signal(number)
        assert stage.wait() == code
        assert not psutil.wait_procs(started, timeout=30)[1], "a server outlived its stage"
        kept = (tmp_path / "scratch" / "journal.jsonl").read_bytes()
        assert kept.startswith(before)
    assert (tmp_path / "traces.jsonl").read_bytes() == undisturbed
    assert set(Counter(journaled(tmp_path)).values()) == {1}


VLLM_LOG = (
    "(APIServer pid=7) WARNING 12-01 [utils.py:255] there may be errors like `OSError: [Errno 24]`\n"
    "(Worker pid=9) ERROR 12-01 [core.py:9] Traceback (most recent call last):\n"
    "(Worker pid=9) ERROR 12-01 [core.py:9] a.b.SomeError: too small\n  in it\n"
    + "    raise RuntimeError(\n" * 6
    + "RuntimeError: Engine core initialization failed. See root cause above.\n"
)
"""As vLLM 0.32 ends where one of the processes below it fails: the cause comes first, and is far from the end."""


def test_a_server_that_is_never_ready(model: Path, sums: Problems, tmp_path: Path) -> None:
    late = ["/bin/sh", "-c", "echo loading; (trap '' TERM; sleep 600) & echo weights >&2; wait", "serve"]
    with pytest.raises(StageError) as caught:
        generate(engine(model, executable=late, start_s=1.0), sums, tmp_path)
    said = str(caught.value)
    assert "of 2 was not ready within start_s, 1 s; " in said
    assert said.endswith("ends with: loading | weights")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("echo trying; echo 'ValueError: no kernel image'; exit 3", "exit code 3 before .* no kernel image"),
        ("kill -9 $$", "exit code 137 before it was ready; .* ends with: .nothing."),
        pytest.param(
            f"printf {shlex.quote(VLLM_LOG)}; exit 1",
            r"server-0.log says a.b.SomeError: too small \| in it; it ends with: ",
            id="vllm",
        ),
    ],
)
def test_a_server_that_dies_at_once(program: str, said: str, model: Path, sums: Problems, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=said):
        generate(engine(model, executable=["/bin/sh", "-c", program], replicas=1), sums, tmp_path)
    assert (tmp_path / "scratch/servers/server-0.log").read_text().count("--served-model-name") == 1


def test_a_port_that_somebody_took(
    model: Path, sums: Problems, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=stranger.serve_forever, daemon=True).start()
    free, given = serving.reserve_port, []

    def reserve() -> socket.socket:
        given.append(stranger.socket.dup() if not given else free())
        return given[-1]

    monkeypatch.setattr(serving, "reserve_port", reserve)
    generate(engine(model, replicas=1), sums, tmp_path)
    stranger.shutdown()
    stranger.server_close()
    assert len(given) == 2
    assert (tmp_path / "traces.jsonl").read_bytes() == undisturbed


def test_a_reserved_port_is_nobody_elses_but_a_server_may_listen_there() -> None:
    with serving.reserve_port() as reserved, socket.socket() as server:
        port = reserved.getsockname()[1]
        others = [serving.reserve_port() for _ in range(200)]
        assert port not in {other.getsockname()[1] for other in others}
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()
        for other in others:
            other.close()


GPUS = ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("gpus", "each", "replicas", "expected"),
    [
        (GPUS, 1, None, [["0"], ["1"], ["2"], ["3"]]),
        (GPUS, 2, None, [["0", "1"], ["2", "3"]]),
        (GPUS, 3, None, [["0", "1", "2"]]),
        (GPUS, 1, 2, [["0"], ["1"]]),
        ([], 1, None, [[]]),
        ([], 1, 2, [[], []]),
    ],
)
def test_replicas_share_the_gpus(gpus: list[str], each: int, replicas: int | None, expected: list[list[str]]) -> None:
    assert split_gpus(gpus, each, replicas) == expected


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["0", "1", "2"]),
        ("2,0", ["2", "0"]),
        ("GPU-cc,GPU-aa", ["2", "0"]),
        ("GPU-b", ["1"]),
        ("MIG-1, GPU-zz", ["MIG-1", "GPU-zz"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_gpus_are_named_by_number(
    visible: str | None, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, GPU-aa\n1, GPU-bb\n2, GPU-cc'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert find_gpus({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == expected


@pytest.mark.parametrize(
    ("visible", "options", "said"),
    [
        ("0,1,2", {"replicas": 2, "tensor_parallel": 2}, "^engine.replicas: 2 x 2 GPUs are needed, but there are 3"),
        ("GPU-a,GPU-b", {"replicas": None, "tensor_parallel": 4}, "^engine.tensor_parallel: 1 x 4 GPUs .* are 2"),
        ("", {"replicas": None, "tensor_parallel": 2}, "1 x 2 GPUs are needed, but there are 0"),
    ],
)
def test_replicas_that_do_not_fit_are_refused(
    visible: str, options: dict[str, Any], said: str, tmp_path: Path, sums: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(RequestError, match=said):
        generate(engine(tmp_path, **options), sums, tmp_path)


def test_a_program_that_is_not_there(tmp_path: Path, sums: Problems) -> None:
    with pytest.raises(RequestError, match=r"^engine.executable: no program 'no-such-vllm'"):
        generate(engine(tmp_path, executable=["no-such-vllm", "serve"]), sums, tmp_path)


SHARES = """
import time
from multiprocessing.shared_memory import SharedMemory
memory = SharedMemory(create=True, size=100)
print(memory.name, flush=True)
time.sleep(600)
"""


def test_the_shared_memory_of_killed_servers_is_given_back(tmp_path: Path) -> None:
    """As vLLM's processes have it; its names stay where Python's resource tracker is killed with them."""
    log = tmp_path / "log"
    guard = start_guarded([sys.executable, "-c", SHARES], log, os.environ, 0.0)
    while not (name := log.read_text().strip()):
        assert guard.poll() is None
        time.sleep(0.02)
    shared = Path("/dev/shm", name)
    assert shared.exists()
    guard.terminate()
    guard.wait()
    assert not shared.exists()


PARENT = """
import os, sys, time
from pathlib import Path
from reasonforge.processes import start_guarded

start_guarded(["/bin/sh", "-c", sys.argv[1]], Path(sys.argv[2]), os.environ, 60.0)
time.sleep(600)
"""


def test_no_process_outlives_a_killed_parent_whatever_it_does(tmp_path: Path) -> None:
    stubborn = "trap '' TERM; (setsid sh -c 'trap \"\" TERM; sleep 601 & sleep 602') & sleep 603 & wait"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, stubborn, str(tmp_path / "log")], cwd=ROOT)
    while len(found := below(parent.pid)) < 6:
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(found, timeout=30)[1]
