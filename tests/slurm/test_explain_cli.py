"""`reasonforge explain` for logs on their own and for runs, as a user calls it."""

import json
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from reasonforge.cli import main
from reasonforge.files import write_json
from recipes.recipe import load_recipe, save_resolved
from recipes.run_directory import RunDirectory

TINY = Path(__file__).parents[2] / "recipes" / "distill-grpo-qwen2-tiny.yaml"
OOM = "[rank3]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["explain", *arguments])


def test_a_log_on_its_own(tmp_path: Path) -> None:
    log = tmp_path / "a log.txt"
    log.write_text(OOM)
    data = json.loads(call("--log", str(log), "--json").output)
    assert data["cause"] == "cuda_oom"
    assert data["where"] == {"log": str(log), "line": 1, "node": None, "rank": 3, "code": None}
    assert data["lines"] == [OOM.strip()]
    assert data["remedy"]
    assert (data["confidence"], data["cascade"]) == (0.95, [])
    text = call("--log", str(log)).output
    assert "cause:   cuda_oom" in text
    assert f"{log}:1, rank 3" in text


def test_standard_input_and_several_logs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "reasonforge", "explain", "--log", "-", "--json"]
    done = subprocess.run(command, input=OOM, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["cause"] == "cuda_oom"
    (tmp_path / "0.log").write_text("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1)\n")
    (tmp_path / "3.log").write_text(OOM)
    data = json.loads(call("--log", str(tmp_path / "0.log"), "--log", str(tmp_path / "3.log"), "--json").output)
    assert (data["cause"], data["cascade"]) == ("cuda_oom", ["nccl_timeout"])


def test_what_cannot_be_explained_is_said_in_one_line(tmp_path: Path) -> None:
    for arguments in ([], ["run", "--log", "x"], ["--log", str(tmp_path / "none")], ["no-such-run"]):
        result = call(*arguments)
        assert result.exit_code == 2
        assert result.output.startswith("error: ")
        assert len(result.output.splitlines()) == 1


def test_the_failed_stages_of_a_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "runs" / "tiny")
    save_resolved(load_recipe(TINY, []), run.recipe)
    write_json(run.plan, {})
    run.record("stage_started", "generate", attempt=1)
    run.record("stage_failed", "generate", error="[Errno 28] No space left on device")
    run.record("stage_started", "grpo", attempt=1)
    run.log("grpo").parent.mkdir(parents=True)
    run.log("grpo").write_text("step 1\n" + OOM)
    runs = ["--runs-dir", str(run.root.parent)]
    data = json.loads(call("tiny", *runs, "--json").output)
    assert [(item["stage"], item["state"], item["cause"]) for item in data] == [
        ("generate", "failed", "disk_full_or_quota"),
        ("grpo", "interrupted", "cuda_oom"),
    ]
    assert data[1]["where"]["log"] == "logs/grpo.log"
    assert "stage grpo (interrupted)\ncause:   cuda_oom" in call("tiny", "grpo", *runs).output
    assert call("tiny", "gpro", *runs).exit_code == 2
    assert "no log and no event" in call("tiny", "report", *runs).output
