"""Shows a local run as it goes: bars on a terminal, a line per event and interval elsewhere. The CLI drives it."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from reasonforge.progress import duration

LINE_INTERVAL_S = 10.0


def remaining(progress: dict[str, Any]) -> str:
    """What is left by the latest rate, for people: "40 s left"; empty where nothing can be said."""
    left = progress["total"] - progress["done"]
    return f"{duration(left / progress['rate'])} left" if left > 0 and progress["rate"] > 0 else ""


def data_size(count: int) -> str:
    """Bytes as "12 bytes", "3.45 KB", "67.8 MB" or "123 GB", in powers of 1000."""
    if count < 1000:
        return f"{count} bytes"
    scaled = float(count)
    for unit in ("KB", "MB", "GB", "TB"):
        scaled /= 1000
        if scaled < 999.5 or unit == "TB":
            break
    return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f} {unit}"


@contextmanager
def showing(stages: Sequence[str]) -> Iterator[Callable[[Any], None]]:
    """Yields the function that takes the launcher's updates (`recipes.local.Update`) and shows them."""
    if sys.stdout.isatty():
        yield from _on_terminal(stages)
    else:
        yield _Lines(len(max(stages, key=len)))


class _Lines:
    """A line when a stage starts, every LINE_INTERVAL_S while it runs, and when it ends."""

    def __init__(self, width: int):
        self.width = width
        self.last: dict[str, float] = {}

    def __call__(self, update: Any) -> None:
        now = time.monotonic()
        if update.state == "running" and now - self.last.get(update.stage, -LINE_INTERVAL_S) < LINE_INTERVAL_S:
            return
        self.last[update.stage] = now
        sys.stdout.write(f"{update.stage:<{self.width}}  {_describe(update)}\n")
        sys.stdout.flush()


def _describe(update: Any) -> str:
    if update.state == "skipped":
        return "already done"
    if update.state != "running":
        return f"{update.state} in {duration(update.elapsed_s)}"
    if not update.progress:
        return f"running, {duration(update.elapsed_s)}"
    state = update.progress
    parts = [
        f"{state['title']} {state['done']}/{state['total']} {state['unit']}",
        f"{state['rate']:.1f}/s",
        remaining(state),
        state["note"],
    ]
    return ", ".join(part for part in parts if part)


def _on_terminal(stages: Sequence[str]) -> Iterator[Callable[[Any], None]]:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.fields[name]}"),
        BarColumn(bar_width=28),
        TextColumn("{task.fields[text]}", style="dim"),
    )
    with Progress(*columns) as bars:
        width = len(max(stages, key=len))
        tasks = {
            name: bars.add_task("", total=None, start=False, visible=False, name=f"{name:<{width}}", text="")
            for name in stages
        }

        def show(update: Any) -> None:
            task, state = tasks[update.stage], update.progress
            if update.state == "running":
                if not bars.tasks[task].started:
                    bars.start_task(task)
                total, done = (state["total"], state["done"]) if state else (None, 0)
                bars.update(task, visible=True, total=total, completed=done, text=_describe(update))
            else:
                ended = 1 if update.state in ("done", "skipped") else 0
                bars.start_task(task)
                bars.update(task, visible=True, total=1, completed=ended, text=_describe(update))
                if not ended:
                    bars.stop_task(task)

        yield show


@contextmanager
def refreshing() -> Iterator[Callable[[Any], None]]:
    """Yields a function that shows a table in the place of the one before; elsewhere than on a terminal, below it."""
    from rich.console import Console
    from rich.live import Live

    if not sys.stdout.isatty():
        yield Console(width=1000).print
        return
    with Live(auto_refresh=False, transient=True) as live:
        yield lambda table: live.update(table, refresh=True)
