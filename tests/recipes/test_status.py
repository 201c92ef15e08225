"""The states of stages, each brought about for real. `running` and `interrupted` by a signal: test_local.py."""

import json
import re

from desk import Desk


def states(desk: Desk) -> dict[str, str]:
    return {entry["stage"]: entry["state"] for entry in json.loads(desk.good("status", "cheap", "--json"))}


def test_pending_done_outdated_damaged(desk: Desk) -> None:
    desk.good("run", "cheap.yaml", "--until", "problems")
    assert states(desk) == {"problems": "done", "generate": "pending", "curate": "pending"}
    desk.good("run", "cheap.yaml")
    entries = json.loads(desk.good("status", "cheap", "--json"))
    assert [entry["stage"] for entry in entries] == ["problems", "generate", "curate"]
    assert all(entry["state"] == "done" and entry["wall_s"] > 0 and entry["attempt"] == 1 for entry in entries)
    assert re.search(r"curate +done +\d+\.\d s", desk.good("status", "cheap"))
    assert desk.good("status", str(desk.run())) == desk.good("status", "cheap")

    desk.good("run", "cheap.yaml", "--until", "problems", "--set", "stages.problems.source.train=130")
    assert states(desk) == {"problems": "done", "generate": "outdated", "curate": "outdated"}


def test_outdated_by_a_changed_option(desk: Desk) -> None:
    desk.good("run", "cheap.yaml")
    desk.good("run", "cheap.yaml", "--until", "problems", "--set", "stages.curate.deduplicate=false")
    assert states(desk) == {"problems": "done", "generate": "done", "curate": "outdated"}
    (desk.run() / "stages" / "problems" / "train.jsonl").write_text("{}\n")
    assert states(desk) == {"problems": "damaged", "generate": "outdated", "curate": "outdated"}
    assert "train.jsonl: 3 bytes, but the receipt says" in desk.good("status", "cheap")
    (desk.run() / "stages" / "problems" / "receipt.json").unlink()
    assert states(desk) == {"problems": "pending", "generate": "outdated", "curate": "outdated"}


def test_failed_after_it_was_done_before(desk: Desk) -> None:
    desk.good("run", "cheap.yaml")
    said = desk.refused("run", "cheap.yaml", "--set", "stages.generate.engine.wrong_rate=1.0", exit_code=1)
    entry = json.loads(desk.good("status", "cheap", "--json"))[-1]
    assert entry["state"] == "failed"
    assert entry["error"] in said
    desk.good("run", "cheap.yaml")
    assert set(states(desk).values()) == {"done"}
