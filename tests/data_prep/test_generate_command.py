"""`reasonforge data generate` as a user types it; the command alone, for the group is tested elsewhere."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from killing import ROOT

from data_prep.commands.generate import generate
from data_prep.sources.problems import RunningSumSource
from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl, write_jsonl

TEACHERS = "{type: several, engines: [{type: programmatic}, {type: programmatic, wrong_rate: 1.0}]}"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(generate, [str(argument) for argument in arguments])


def test_problems_become_traces(sums: list[dict[str, str]], tmp_path: Path) -> None:
    problems, config = tmp_path / "problems.jsonl", tmp_path / "engine.yaml"
    write_jsonl(problems, ({**row, "domain": "sums"} for row in sums))
    config.write_text(f"engine: {TEACHERS}\nsampling: {{samples: 2}}\n")
    done = run(problems, tmp_path / "traces.jsonl", "--config", config, "--set", "sampling.samples=3", "--json")
    assert json.loads(done.stdout) == {"problems": 12, "samples": 72, "finished_stop": 72}
    rows = list(read_jsonl(tmp_path / "traces.jsonl"))
    assert len({row["id"] for row in rows}) == 72
    assert {row["domain"] for row in rows} == {"sums"}
    assert not list(tmp_path.glob(".*"))
    again = run(problems, tmp_path / "traces.jsonl", "--config", config)
    assert isinstance(again.exception, RequestError)
    assert "is already there" in str(again.exception)


def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "problems.jsonl", RunningSumSource(train=20_000, eval=1).make(0).train)
    arguments = [tmp_path / "problems.jsonl", tmp_path / "traces.jsonl", "--set", "engine.type=programmatic"]
    script = "from data_prep.commands.generate import generate; generate()"
    process = subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, stderr=subprocess.PIPE)
    while len(kept := list(tmp_path.glob(".traces.jsonl.working/*/shards/*.jsonl"))) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "traces.jsonl").exists()
    assert len(kept) < 40
    assert run(*arguments).exit_code == 0
    assert run(arguments[0], tmp_path / "again.jsonl", *arguments[2:]).exit_code == 0
    assert (tmp_path / "traces.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no problems to answer"),
        ([{"id": "a", "prompt": "b"}], "no column 'answer'"),
        ([{"id": "a", "prompt": "b", "answer": "c"}] * 2, "p.jsonl:2: the id 'a' comes again: "),
    ],
)
def test_problems_that_cannot_be_asked(rows: list[dict[str, str]], said: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", rows)
    done = run(tmp_path / "p.jsonl", tmp_path / "t.jsonl", "--set", "engine.type=programmatic")
    assert isinstance(done.exception, RequestError)
    assert said in str(done.exception)
