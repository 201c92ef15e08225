import json
from pathlib import Path

import pytest

from reasonforge import progress
from reasonforge.progress import Progress


def state(path: Path) -> dict[str, object]:
    return json.loads(path.read_text())


def test_the_last_state_is_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("sampling", 100, "samples", tmp_path / "p.json") as counter:
        for _ in range(100):
            counter.advance(note="loss 0.5")
    found = state(tmp_path / "p.json")
    assert {name: found[name] for name in ("title", "done", "total", "unit", "note")} == {
        "title": "sampling",
        "done": 100,
        "total": 100,
        "unit": "samples",
        "note": "loss 0.5",
    }
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("sampling: 0/100 samples, ")
    assert last.startswith("sampling: 100/100 samples, ")
    assert last.endswith("/s | loss 0.5")
    assert not list(tmp_path.glob("*.tmp"))


def test_the_state_is_written_where_the_work_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with Progress("sampling", 10, "samples", tmp_path / "p.json") as counter:
            counter.advance(3)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert state(tmp_path / "p.json")["done"] == 3


def test_earlier_work_says_nothing_about_the_rate() -> None:
    counter = Progress("sampling", 1000, "samples")
    counter.resume(900)
    assert counter.done == 900
    assert counter.rate == 0
    counter.advance(10)
    assert counter.done == 910
    assert counter.rate > 0
    slower = Progress("sampling", 1000, "samples")
    slower.set(910)
    assert slower.rate > 50 * counter.rate


def test_a_line_an_interval(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 3600.0)
    counter = Progress("sampling", 5, "samples")
    counter._logged = progress.time.monotonic()
    for _ in range(5):
        counter.advance()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 0.0)
    counter.set(4)
    (line,) = capsys.readouterr().err.splitlines()
    assert "sampling: 4/5 samples" in line
    assert line.endswith(" s left")


def test_a_total_that_is_not_known_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading", 0, "traces") as counter:
        counter.advance(3)
    assert capsys.readouterr().err.splitlines()[-1].startswith("reading: 3 traces, ")
