import os
import pty
import re
import subprocess
from contextlib import suppress

import pytest
from desk import Desk

from reasonforge.display import remaining, showing
from reasonforge.progress import duration
from recipes.local import Update


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (4.24, "4.2 s"), (12.6, "12.6 s"), (59.4, "59.4 s"), (60, "1 min 00 s"), (200, "3 min 20 s"),
     (3599.4, "59 min 59 s"), (3600, "1 h 00 min"), (7500, "2 h 05 min"), (90_000, "25 h 00 min")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("done", "rate", "text"),
    [(0, 0.0, ""), (10, 1.0, ""), (12, 1.0, ""), (5, 0.5, "10.0 s left"), (0, 1.0, "10.0 s left")],
)
def test_what_is_left(done: int, rate: float, text: str) -> None:
    assert remaining({"done": done, "total": 10, "rate": rate}) == text


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    state = {"title": "sampling", "done": 3, "total": 9, "unit": "samples", "rate": 1.0, "note": "loss 0.5"}
    with showing(["generate", "curate"]) as show:
        show(Update("generate", "skipped"))
        show(Update("curate", "running"))
        for _ in range(20):
            show(Update("curate", "running", 1.0, state))
        show(Update("curate", "failed", 2.0, state))
    assert capsys.readouterr().out.splitlines() == [
        "generate  already done",
        "curate    running, 0.0 s",
        "curate    failed in 2.0 s",
    ]
    with showing(["curate"]) as show:
        show(Update("curate", "running", 1.0, state))
    assert capsys.readouterr().out == "curate  sampling 3/9 samples, 1.0/s, 6.0 s left, loss 0.5\n"


def on_terminal(desk: Desk) -> str:
    """What `reasonforge run` shows on a terminal, without the codes that move the cursor."""
    ours, theirs = pty.openpty()
    command = [os.fspath(desk.command), "run", "cheap.yaml"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, cwd=desk.root, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # Linux's way to say that the other end was closed
        while more := os.read(ours, 4096):
            shown += more
    os.close(ours)
    assert process.wait() == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


def test_bars_on_a_terminal(desk: Desk) -> None:
    for expected in ("done in", "already done"):
        text = on_terminal(desk)
        for stage in ("problems", "generate", "curate"):
            assert re.search(rf"{stage} +━+ {expected}", text), text
