import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from data_prep.grading import sandbox
from data_prep.grading.sandbox import Ended, Sandbox, check, run
from reasonforge.errors import RequestError

BOX = Sandbox(cpu_s=1, wall_s=3.0, memory_mib=128, processes=8, file_mib=1, output_kib=4)


def allowed() -> bool:
    try:
        check(Sandbox())
    except RequestError:
        return False
    return True


pytestmark = [
    pytest.mark.skipif(not allowed(), reason="this kernel allows no namespaces"),
    pytest.mark.xdist_group("sandbox"),  # each test sees that no process of any sandbox is left
]


def go(code: str, box: Sandbox = BOX, stdin: str = "") -> Ended:
    return run(box, "main.py", {"main.py": code}, stdin)


@pytest.fixture(autouse=True)
def _nothing_left_over() -> Iterator[None]:
    """No process of the sandbox outlives its run, and the host's own settings stay."""
    before = Path("/proc/sys/user/max_user_namespaces").read_text(), set(os.listdir("/tmp"))
    yield
    living = [path for path in Path("/proc").glob("[0-9]*/cmdline") if is_ours(read(path))]
    assert not living
    assert Path("/proc/sys/user/max_user_namespaces").read_text() == before[0]
    assert not {name for name in set(os.listdir("/tmp")) - before[1] if name.startswith("reasonforge-sandbox")}


def is_ours(command: bytes) -> bool:
    return b"sandbox_child" in command or command.endswith(b"utf8\0-S\0main.py\0")


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_program_runs_with_its_input() -> None:
    ended = go(
        "import sys\nprint(sum(map(int, input().split())))\nprint('e', file=sys.stderr)\nsys.exit(3)", stdin="1 2\n"
    )
    assert ended == Ended("exit", 3, "3\n", "e\n")
    assert go("raise SystemExit").code == 0
    assert "ZeroDivisionError" in go("1/0").stderr
    assert go("import os; os.abort()").code == -6


def test_it_reaches_no_listener_of_this_machine() -> None:
    reached = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        threading.Thread(target=lambda: reached.append(accept(server))).start()
        port = server.getsockname()[1]
        code = f"import socket\ntry: socket.create_connection(('127.0.0.1', {port}), 1)\nexcept OSError as e: print(e)"
        assert "unreachable" in go(code).stdout
    with socket.create_server(("127.0.0.1", 0)) as server:  # the same code does reach it without the namespaces
        code = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1); print('in')"
        assert go(code, BOX.model_copy(update={"isolation": "none"})).stdout == "in\n"
    assert not any(reached)


def accept(server: socket.socket) -> bool:
    try:
        server.accept()
    except OSError:
        return False
    return True


def test_it_has_no_interface_and_no_name_service() -> None:
    code = "import socket\nprint([n for _, n in socket.if_nameindex()])\nsocket.getaddrinfo('example.org', 80)"
    ended = go(code)
    assert (ended.stdout, ended.code) == ("['lo']\n", 1)


def test_a_fork_bomb_is_contained() -> None:
    count = "import os, time\nmade = 0\nwhile True:\n    try:\n        pid = os.fork()\n    except OSError:\n        break\n    if pid == 0:\n        time.sleep(60)\n    made += 1\nprint(made)"  # noqa: E501
    assert int(go(count).stdout) == BOX.processes - 1
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    assert go(bomb).reason in ("wall", "cpu")


def test_a_memory_bomb_is_contained() -> None:
    ended = go("x = []\nwhile True: x.append(bytearray(10**7))")
    assert (ended.reason, ended.code) == ("exit", 1)
    assert "MemoryError" in ended.stderr


def test_an_endless_loop_and_an_endless_sleep_end() -> None:
    assert go("while True: pass").reason == "cpu"
    ended = go("import time\nprint('on', flush=True)\ntime.sleep(600)", BOX.model_copy(update={"wall_s": 0.5}))
    assert (ended.reason, ended.stdout) == ("wall", "on\n")
    stubborn = "import signal, time\nfor s in range(1, 32):\n    if s not in (9, 19): signal.signal(s, signal.SIG_IGN)\nwhile True: time.sleep(9)"  # noqa: E501
    assert go(stubborn, BOX.model_copy(update={"wall_s": 0.5})).reason == "wall"


def test_endless_output_ends() -> None:
    ended = go("while True: print('x' * 1000)")
    assert (ended.reason, len(ended.stdout)) == ("output", 4096)
    ended = go("import sys\nfor _ in range(10**5): sys.stderr.write('y')")
    assert (ended.reason, ended.code, len(ended.stderr)) == ("exit", 0, 4096)


@pytest.mark.parametrize("path", ["/usr/x", "/x", "/etc/x", "/dev/x", sys.base_prefix + "/x", str(Path.home() / "x")])
def test_it_writes_nowhere_else(path: str) -> None:
    ended = go(f"open({path!r}, 'w')")
    assert (ended.reason, ended.code) == ("exit", 1)
    assert not Path(path).exists()


def test_its_files_are_limited_and_gone_afterwards() -> None:
    assert go("open('a', 'wb').write(bytes(2**19)); import os; print(os.path.getsize('a'))").stdout == "524288\n"
    assert "too large" in go("open('a', 'wb').write(bytes(2**21))").stderr
    many = "for i in range(99):\n    with open(str(i), 'wb') as f: f.write(bytes(2**20))"
    assert "No space left" in go(many).stderr
    assert go("import os; print(os.listdir('.'))").stdout == "['main.py']\n"
    assert "Too many open files" in go("x = [open('main.py') for _ in range(999)]").stderr


def test_it_sees_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("API_KEY", "hunter2")
    (tmp_path / "key").write_text("hunter2")
    code = f"""
import os
print(sorted(os.environ))
for path in {[str(tmp_path / "key"), "/proc/self/environ", "/proc/1/environ", "/etc/passwd", str(Path(__file__))]!r}:
    try:
        print(open(path).read())
    except OSError:
        print('no')
"""
    lines = go(code).stdout.splitlines()
    assert "API_KEY" not in lines[0]
    assert lines[1:] == ["no"] * 5


def test_it_can_end_none_but_its_own() -> None:
    code = f"""
import os, signal
for pid in (os.getppid(), 1, {os.getpid()}, {os.getppid()}, -1):
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError as error:
        print(type(error).__name__)
print('still here')
"""
    ended = go(code)
    assert (ended.reason, ended.code) == ("exit", 0)
    assert ended.stdout.splitlines()[-1] == "still here"


def test_daemons_end_with_it() -> None:
    code = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(300)\n    os._exit(0)\nprint('done')"  # noqa: E501
    for isolation in ("namespaces", "none"):
        start = time.monotonic()
        ended = go(code.replace("300", "299.5"), BOX.model_copy(update={"isolation": isolation, "wall_s": 60.0}))
        assert (ended.reason, ended.stdout) == ("exit", "done\n")
        assert time.monotonic() - start < 50, "it waited for the daemon"


def test_it_cannot_get_privileges_back() -> None:
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.unshare(0x10000000), libc.unshare(0x40000000), libc.mount(b'none', b'/usr', b'tmpfs', 0, None))
print(libc.setuid(0), libc.chroot(b'/tmp'), libc.ptrace(16, 1, 0, 0), os.getuid() != 0)
"""
    assert go(code).stdout == "-1 -1 -1\n-1 -1 -1 True\n"


def test_everything_ends_when_the_one_who_asked_is_killed(tmp_path: Path) -> None:
    script = "from data_prep.grading.sandbox import *\nrun(Sandbox(), 'm.py', {'m.py': 'import time; time.sleep(50)'})"
    process = psutil.Popen(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    while not any("sandbox_child" in " ".join(child.cmdline()) for child in process.children(recursive=True)):
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    below = process.children(recursive=True)
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(below, timeout=60)
    assert not left


def others_may_read(path: Path) -> bool:
    return not path.is_relative_to("/tmp") and all(part.stat().st_mode & 0o5 == 0o5 for part in (path, *path.parents))


@pytest.mark.skipif(not others_may_read(Path(sys.prefix)), reason="this environment lies where no other user reads it")
def test_packages_are_shown_where_the_recipe_says_so() -> None:
    code = "import pydantic; print(1)"
    assert go(code).code == 1
    assert go(code, Sandbox(site_packages=True)).stdout == "1\n"


def test_where_the_kernel_refuses_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sandbox._request

    def asked(*arguments: object) -> dict[str, object]:
        # A root that cannot be built, as on a host that forbids mounting.
        return {**real(*arguments), "room_bytes": "x"}  # type: ignore[arg-type]

    monkeypatch.setattr(sandbox, "_request", asked)
    with pytest.raises(RequestError, match=r"sandbox.isolation: no namespaces here .*`isolation: none`") as error:
        go("print(1)")
    assert "\n" not in str(error.value)
