"""The local launcher with real stages in real processes: skipping, redoing, stopping, and killing."""

import json
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from desk import Desk, in_sessions, stage_processes, until

SLOW = """\
base: cheap.yaml
name: slow
stages:
  problems: {source: {train: 4000}}
  generate: {sampling: {samples: 40}, engine: {workers: 2}}
"""


def redone(desk: Desk, *arguments: str, name: str = "cheap") -> list[str]:
    """The stages that a run really did, not those that it skipped."""
    before = len(desk.events(name))
    desk.good("run", f"{name}.yaml", *arguments)
    return [event["stage"] for event in desk.events(name)[before:] if event["event"] == "stage_started"]


def states(desk: Desk, name: str) -> dict[str, str]:
    return {entry["stage"]: entry["state"] for entry in json.loads(desk.good("status", name, "--json"))}


def test_what_is_done_is_skipped_and_only_what_follows_is_done_again(desk: Desk) -> None:
    everything = ["problems", "generate", "curate"]
    assert redone(desk) == everything
    first = desk.digests()
    receipts = {path: path.read_bytes() for path in desk.run().glob("stages/*/receipt.json")}
    assert redone(desk) == []
    assert redone(desk, "--set", "stages.generate.engine.workers=2", "--set", "stages.curate.workers=1") == []
    assert {path: path.read_bytes() for path in desk.run().glob("stages/*/receipt.json")} == receipts
    assert desk.good("run", "cheap.yaml").count("already done") == 3

    assert redone(desk, "--force", "generate") == ["generate"], "equal traces, so curate stays"
    assert redone(desk, "--set", "stages.generate.sampling.temperature=0.5") == ["generate"], "nothing comes of it"
    assert redone(desk) == ["generate"]
    assert desk.digests() == first
    assert redone(desk, "--set", "stages.curate.deduplicate=false") == ["curate"]
    assert redone(desk, "--set", "stages.generate.engine.hasty_rate=0.9") == ["generate", "curate"]
    assert redone(desk, "--set", "seed=4") == everything
    assert all(desk.digests()[stage] != first[stage] for stage in everything)
    assert redone(desk) == everything
    assert desk.digests() == first
    assert redone(desk, "--force", "problems", "--force", "curate") == ["problems", "curate"]
    assert not list(desk.run().glob("work/*/*")), "the work is cleared away"


def test_parts_of_a_recipe(desk: Desk) -> None:
    assert redone(desk, "--until", "generate") == ["problems", "generate"]
    assert states(desk, "cheap") == {"problems": "done", "generate": "done", "curate": "pending"}
    assert redone(desk, "--from", "curate") == ["curate"]
    assert redone(desk, "--from", "generate", "--until", "generate", "--force", "generate") == ["generate"]


def test_a_changed_file_of_the_users_is_seen(desk: Desk) -> None:
    desk.write("cheap.yaml", "name: cheap\nstages: {problems: {type: problems, source: "
               "{type: file, path: mine.jsonl, eval_count: 1}}}\n")  # fmt: skip
    rows = ['{"prompt": "one", "answer": 1}', '{"prompt": "two", "answer": 2}']
    desk.write("mine.jsonl", "\n".join(rows))
    assert redone(desk) == ["problems"]
    os.utime(desk.root / "mine.jsonl", (0, 0))
    assert redone(desk) == []
    desk.write("mine.jsonl", "\n".join([*rows, '{"prompt": "three", "answer": 3}']))
    assert redone(desk) == ["problems"]


def test_a_failed_stage_says_so_and_the_run_goes_on_once_it_is_mended(desk: Desk) -> None:
    said = desk.refused("run", "cheap.yaml", "--set", "stages.generate.engine.wrong_rate=1.0", exit_code=1)
    log = desk.run() / "logs" / "curate.log"
    assert said.startswith("stage curate: curate: all 120 traces were dropped, so the dataset would be empty; ")
    assert said.endswith(f"(log: {log})")
    assert said.removeprefix("stage curate: ").removesuffix(f" (log: {log})") in log.read_text()
    assert desk.stages() == {"problems", "generate"}
    assert states(desk, "cheap")["curate"] == "failed"
    assert "all 120 traces were dropped" in desk.good("status", "cheap")
    assert redone(desk) == ["generate", "curate"]
    assert set(states(desk, "cheap").values()) == {"done"}


def test_a_tampered_receipt_stops_the_run(desk: Desk) -> None:
    desk.good("run", "cheap.yaml")
    first = desk.digests()
    receipt = desk.run() / "stages" / "generate" / "receipt.json"
    receipt.write_text(receipt.read_text().replace('"attempt": 1', '"attempt": 2'))
    events = desk.events()
    said = desk.refused("run", "cheap.yaml")
    assert said == (
        f"{receipt}: altered after it was written: its checksum does not fit its content; "
        "restore it, or make the artifact again with --force STAGE"
    )
    assert [event["event"] for event in desk.events()[len(events) :]] == ["run_started"]
    assert states(desk, "cheap") == {"problems": "done", "generate": "damaged", "curate": "outdated"}
    assert redone(desk, "--force", "generate") == ["generate"]
    assert desk.digests() == first


def test_a_missing_file_of_an_input_stops_the_run(desk: Desk) -> None:
    desk.good("run", "cheap.yaml")
    (desk.run() / "stages" / "problems" / "eval.jsonl").unlink()
    said = desk.refused("run", "cheap.yaml", "--from", "curate", "--force", "curate")
    assert said.startswith("stage curate: ")
    assert "problems/eval.jsonl: missing, though the receipt lists it; restore it, or make" in said
    assert desk.stages() == {"problems", "generate", "curate"}


def started(desk: Desk, stage: str, name: str = "slow") -> bool:
    return any(event["event"] == "stage_started" and event["stage"] == stage for event in desk.events(name))


def test_one_launcher_at_a_time_and_ctrl_c(desk: Desk) -> None:
    desk.write("slow.yaml", SLOW)
    launcher = desk.start("run", "slow.yaml")
    until(lambda: started(desk, "generate"))
    assert states(desk, "slow")["generate"] == "running"
    assert desk.refused("run", "slow.yaml") == (
        f"{desk.run('slow')}: another reasonforge is running here; wait for it, or give this run another --name"
    )
    leaders = stage_processes(desk.run("slow"))
    assert len(leaders) == 1
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate()
    assert launcher.returncode == 130
    assert errors == "stopped; the same command goes on from here\n"
    until(lambda: not in_sessions(leaders))
    assert desk.stages("slow") == {"problems"}
    assert states(desk, "slow") == {"problems": "done", "generate": "interrupted", "curate": "pending"}
    assert redone(desk, "--until", "generate", name="slow") == ["generate"]
    receipt = json.loads((desk.run("slow") / "stages" / "generate" / "receipt.json").read_text())
    assert receipt["cost"]["attempt"] == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_launcher_that_is_killed_leaves_nothing_running(desk: Desk, number: signal.Signals) -> None:
    desk.write("slow.yaml", SLOW)
    run = desk.run("slow")
    launcher = desk.start("run", "slow.yaml")
    until(lambda: started(desk, "generate") and len(in_sessions(stage_processes(run))) >= 3)
    leaders = stage_processes(run)
    launcher.send_signal(number)
    assert launcher.wait() == -number
    until(lambda: not in_sessions(leaders))
    assert states(desk, "slow")["generate"] == "interrupted"


def test_a_launcher_that_is_killed_while_its_stage_starts_leaves_nothing_running(desk: Desk) -> None:
    launcher = desk.start("run", "cheap.yaml")
    until(lambda: bool(stage_processes(desk.run())))
    launcher.kill()
    until(lambda: not stage_processes(desk.run()))
    assert desk.stages() == set()
    assert [event["event"] for event in desk.events()] == ["run_started"]


def test_a_stage_that_is_killed_is_named_and_its_workers_are_gone(desk: Desk) -> None:
    desk.write("slow.yaml", SLOW)
    run = desk.run("slow")
    launcher = desk.start("run", "slow.yaml")
    until(lambda: started(desk, "generate") and len(in_sessions(stage_processes(run))) >= 3)
    (leader,) = stage_processes(run)
    os.kill(leader, signal.SIGKILL)
    _, errors = launcher.communicate()
    assert launcher.returncode == 1
    assert errors == (
        "error: stage generate: killed by SIGKILL; run again to go on from where it was "
        f"(log: {run / 'logs' / 'generate.log'})\n"
    )
    until(lambda: not in_sessions([leader]))
    assert desk.stages("slow") == {"problems"}


PIPELINE = """\
base: cheap.yaml
name: NAME
stages:
  problems: {source: {train: 2000}}
  base:
    type: base_model
    inputs: {problems: problems}
    source:
      type: scratch
      model: {layers: 1, hidden_size: 32, ffn_size: 64}
      training: {steps: 12, batch_size: 8, save_every: 3, learning_rate: 1e-3}
  generate: {sampling: {samples: 3}, engine: {workers: 2}}
  tokenize: {type: tokenize, inputs: {dataset: curate, model: base}, max_tokens: 256}
"""


def killed_at(desk: Desk, rng: random.Random, spared: Counter[str]) -> str | None:
    """Run until a stage that is not spared yet has started, and kill soon after; the stage, None where all is done."""
    run, seen = desk.run("killed"), len(desk.events("killed"))

    def victims() -> list[str]:
        began = [event["stage"] for event in desk.events("killed")[seen:] if event["event"] == "stage_started"]
        return [stage for stage in began if spared[stage] > 0]

    launcher = desk.start("run", "killed.yaml")
    until(lambda: bool(victims()) or launcher.poll() is not None)
    if not victims():
        assert launcher.wait() == 0
        return None
    stage = victims()[0]
    time.sleep(rng.uniform(0.0, 2.0 if stage == "base" else 0.4))
    leaders = stage_processes(run)
    if rng.random() < 0.5 or not leaders:  # it may just be between two stages
        launcher.kill()
    else:
        for process in in_sessions(leaders):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    launcher.communicate()
    until(lambda: not in_sessions(leaders) and not stage_processes(run))
    assert desk.stages("killed") <= {"problems", "base", "generate", "curate", "tokenize"}
    return stage


def test_kills_leave_no_trace(desk: Desk) -> None:
    for name in ("whole", "killed"):
        desk.write(f"{name}.yaml", PIPELINE.replace("NAME", name))
    rng, left = random.Random(5), Counter(problems=1, base=2, generate=2, curate=1, tokenize=2)
    while stage := killed_at(desk, rng, left):
        left[stage] -= 1
    assert left.total() <= 4, "most kills have come before the stage's end"
    desk.good("run", "whole.yaml", "--set", "stages.generate.engine.workers=1", "--set", "stages.tokenize.workers=2")
    killed, whole = desk.digests("killed"), desk.digests("whole")
    for stage in ("problems", "generate", "curate", "tokenize"):
        assert killed[stage] == whole[stage], stage
    assert weights(desk.run("killed")) == weights(desk.run("whole"))
    attempts = [
        json.loads(path.read_text())["cost"]["attempt"] for path in desk.run("killed").glob("stages/*/receipt.json")
    ]
    assert sum(attempts) > len(attempts)


def weights(run: Path) -> bytes:
    return (run / "stages" / "base" / "model.safetensors").read_bytes()
