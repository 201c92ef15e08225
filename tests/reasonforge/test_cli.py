"""The command line as a user meets it: what it prints, what it refuses in one line, and its exit codes."""

import json
import re
import signal
import subprocess

import pytest
import yaml
from desk import Desk

PROBLEMS = '{"prompt": "one?", "answer": "1"}\n{"prompt": "two?", "answer": "2"}\n'


def test_help_names_every_command(desk: Desk) -> None:
    text = desk.good("--help")
    for command in ("run", "validate", "plan", "status", "logs", "verify", "doctor"):
        assert re.search(rf"^  {command} +[A-Z].*\.$", text, re.MULTILINE), text
        assert "Usage: reasonforge " + command in desk.good(command, "-h")
    assert re.fullmatch(r"reasonforge, version \d+\.\d+\.\d+\n", desk.good("--version"))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("sed=1", "--set: sed: unknown key 'sed'; did you mean 'seed'?"),
        ("seed=x", "--set: seed: found 'x'; input should be a valid integer"),
        ("name=a/b", "--set: name: found 'a/b'; string should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$'"),
        (
            "stages.generate.engine.hasty_rat=1",
            "--set: stages.generate.engine.hasty_rat: unknown key 'hasty_rat'; did you mean 'hasty_rate'?",
        ),
        (
            "stages.generate.engine.type=programatic",
            "--set: stages.generate.engine.type: found 'programatic', which does not exist; "
            "did you mean 'programmatic'?",
        ),
        (
            "stages.generate.type=genrate",
            "--set: stages.generate.type: found 'genrate', which does not exist; did you mean 'generate'?",
        ),
        (
            "stages.curate.inputs.traces=genrate",
            "--set: stages.curate.inputs.traces: found 'genrate', but no stage of that name makes anything; "
            "did you mean 'generate'?",
        ),
        (
            "stages.curate.inputs.traces=problems",
            "--set: stages.curate.inputs.traces: problems makes problems, but traces is needed; "
            "traces is made by: generate",
        ),
        (
            "stages.curate.inputs.problem=problems",
            "--set: stages.curate.inputs.problem: unknown key 'problem'; did you mean 'problems'?",
        ),
        ("stages.generate=null", "--set: stages.generate: found None; a mapping of keys is needed"),
        ("stages.new.engine.type=hf", "--set: stages.new: no 'type' is given; choose one of: problems, base_model,"),
        ("stages={}", "--set: stages: found {}; dictionary should have at least 1 item after validation, not 0"),
        ("seed", "--set seed: not of the form KEY=VALUE; for example --set stages.grpo.engine.steps=20"),
    ],
)
def test_a_bad_override_is_one_line(desk: Desk, override: str, line: str) -> None:
    assert desk.refused("run", "cheap.yaml", "--set", override).startswith(line)
    assert not (desk.root / "runs").exists()


CYCLE = """\
  one: {type: generate, inputs: {problems: problems, teacher: two}, engine: {type: hf}}
  tokens: {type: tokenize, inputs: {dataset: curated, model: two}, max_tokens: 8}
  two: {type: distill, inputs: {model: two, tokens: tokens}, engine: {type: trl, steps: 1}}
  curated: {type: curate, inputs: {traces: one, problems: problems}, grader: {type: exact}}
"""


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("absent.yaml", None, "absent.yaml: no such file"),
        ("bad.yaml", "name: [x\n", "bad.yaml:2: not YAML: expected ',' or ']'"),
        ("twice.yaml", "name: x\nname: y\n", "twice.yaml:2: name: written twice, first at twice.yaml:1"),
        ("child.yaml", "base: grandchild.yaml\n", "grandchild.yaml:1: base: a base may not have a base of its own; "),
        ("key.yaml", "base: cheap.yaml\n\nstage: {}\n", "key.yaml:3: stage: unknown key 'stage'; did you mean"),
        ("name.yaml", "base: cheap.yaml\nstages:\n  a b: {type: problems}\n", "name.yaml:3: stages.a b: found 'a b'; "),
        (
            "type.yaml",
            "base: cheap.yaml\nstages:\n  generate:\n    sampling: {samples: many}\n",
            "type.yaml:4: stages.generate.sampling.samples: found 'many'; input should be a valid integer",
        ),
        (
            "base.yaml",
            "base: cheap.yaml\nstages:\n  problems: {source: {train: -1}}\n",
            "base.yaml:3: stages.problems.source.train: found -1; input should be greater than or equal to 1",
        ),
        (
            "cycle.yaml",
            f"base: cheap.yaml\nstages:\n{CYCLE}",
            "cycle.yaml:3: stages.one: stages need each other in a circle: one -> curated -> tokens -> two -> one; ",
        ),
    ],
)  # fmt: skip
def test_a_bad_recipe_is_one_line(desk: Desk, name: str, text: str | None, line: str) -> None:
    desk.write("grandchild.yaml", "base: cheap.yaml\n")
    if text is not None:
        desk.write(name, text)
    said = desk.refused("run", name, "--name", "x") if name != "name.yaml" else desk("run", name).stderr[7:]
    assert said.startswith(line)
    assert not (desk.root / "runs").exists()


def test_every_mistake_has_a_line(desk: Desk) -> None:
    done = desk("validate", "cheap.yaml", "--set", "seed=-1", "--set", "nam=x")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: --set: seed: found -1; input should be greater than or equal to 0",
        "error: --set: nam: unknown key 'nam'; did you mean 'name'?",
    ]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--from", "genrate"], "--from genrate: the recipe has no such stage; did you mean 'generate'?"),
        (["--until", "x"], "--until x: the recipe has no such stage; choose one of: curate, generate, problems"),
        (["--force", "x"], "--force x: the recipe has no such stage; choose one of: curate, generate, problems"),
        (["--until", "generate", "--force", "curate"], "--force curate: left out by --from or --until; widen them"),
        (["--from", "curate", "--until", "generate"], "--from curate --until generate: no stage lies between them"),
        (["--name", "../up"], "--name ../up: not fit for a directory; use letters, digits, "),
        (["--name", "a b"], "--name a b: not fit for a directory; use letters, digits, "),
        (["--from", "curate"], "stage curate: needs generate, which is left out and not done yet; start from generate"),
    ],
)
def test_a_bad_choice_of_stages_is_one_line(desk: Desk, options: list[str], line: str) -> None:
    assert desk.refused("run", "cheap.yaml", *options).startswith(line)
    assert not (desk.root / "runs").exists()


def test_a_run_that_does_not_exist(desk: Desk) -> None:
    for command in ("status", "logs", "verify"):
        assert desk.refused(command, "x") == "runs/x: no such run; start one with: reasonforge run RECIPE"
    desk.good("run", "cheap.yaml", "--until", "problems", "--name", "first")
    for command in ("status", "logs", "verify"):
        assert desk.refused(command, "frist") == "runs/frist: no such run; there are: first"
    assert desk.refused("logs", "first", "curate").endswith("curate.log: no such log; the run has: problems")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (PROBLEMS + '{"prompt": "three?", \n', "mine.jsonl:3: not JSON at column "),
        (PROBLEMS.encode() + b'{"prompt": "\xff"}\n', "mine.jsonl:3: not UTF-8 at byte "),
        (PROBLEMS + "\n[]\n", "mine.jsonl:4: found a JSON list; a jsonl file holds one JSON object on each line"),
        (PROBLEMS + '{"prompt": "?", "anwser": "3"}\n', "mine.jsonl:3: no column 'answer'; did you mean 'anwser'?"),
        (PROBLEMS + '{"prompt": "\\ud83d", "answer": "3"}\n', "mine.jsonl:3: a lone surrogate"),
        ("", "mine.jsonl: holds no problems"),
        (None, "mine.jsonl: no such file"),
    ],
)  # fmt: skip
def test_a_corrupt_line_of_the_users_file(desk: Desk, content: str | bytes | None, line: str) -> None:
    if content is not None:
        desk.write("mine.jsonl", content)
    desk.write(
        "mine.yaml",
        "name: mine\nstages: {problems: {type: problems, source: {type: file, path: mine.jsonl, eval_count: 1}}}\n",
    )
    said = desk.refused("run", "mine.yaml")
    assert line in said
    assert said.startswith(("stage problems: mine.jsonl", "mine.jsonl: no such file"))
    assert desk.stages("mine") == set()
    if content is None:
        desk.write("mine.jsonl", PROBLEMS)
        desk.good("run", "mine.yaml")
        assert desk.stages("mine") == {"problems"}


def test_a_model_without_its_tokenizer(desk: Desk) -> None:
    desk.write("model/config.json", '{"model_type": "qwen2"}')
    desk.write("m.yaml", "name: m\nstages: {base: {type: base_model, source: {type: checkpoint, path: model}}}\n")
    said = desk.refused("run", "m.yaml")
    assert said.startswith("stage base: model: no tokenizer_config.json, so no Hugging Face model with its tokenizer; ")
    desk.write("model/tokenizer_config.json", "{}")
    assert desk.refused("run", "m.yaml").startswith("stage base: model: no tokenizer.json, so no Hugging Face model")
    desk.write("model/tokenizer.json", "{}")
    assert desk.refused("run", "m.yaml").startswith("stage base: model: no model.safetensors, so no Hugging Face model")
    assert desk.stages("m") == set()


def test_plan_is_a_pure_function_of_the_recipe(desk: Desk) -> None:
    plan = json.loads(desk.good("plan", "cheap.yaml", "--json"))
    assert [stage["name"] for stage in plan["stages"]] == ["problems", "generate", "curate"]
    assert plan["stages"][2] == {
        "name": "curate",
        "type": "curate",
        "engine": None,
        "inputs": {"traces": "generate", "problems": "problems"},
        "kind": "dataset",
        "command": ["python", "-m", "recipes.run_stage", "RUN_DIR", "curate"],
    }
    table = desk.good("plan", "cheap.yaml")
    assert re.search(r"generate +generate +programmatic +problems +traces", table)
    assert not (desk.root / "runs").exists()


def test_a_resolved_recipe_is_a_recipe_with_the_same_plan(desk: Desk) -> None:
    resolved = desk.good("plan", "cheap.yaml", "--resolved", "--set", "stages.generate.engine.hasty_rate=1e-6")
    desk.write("resolved.yaml", resolved)
    assert yaml.safe_load(resolved)["stages"]["generate"]["engine"]["hasty_rate"] == 1e-6
    assert json.loads(desk.good("plan", "cheap.yaml", "--resolved", "--json"))["seed"] == 3
    assert desk.good("plan", "resolved.yaml", "--json") == desk.good("plan", "cheap.yaml", "--json")
    assert desk.good("plan", "resolved.yaml", "--resolved") == resolved


def test_validate(desk: Desk) -> None:
    assert desk.good("validate", "cheap.yaml") == "cheap.yaml: good; 3 stages: problems, generate, curate\n"
    assert json.loads(desk.good("validate", "cheap.yaml", "--json")) == {
        "recipe": "cheap",
        "stages": ["problems", "generate", "curate"],
    }


def test_debug_shows_the_traceback(desk: Desk) -> None:
    done = desk("--debug", "validate", "absent.yaml")
    assert "Traceback" in done.stderr
    assert "no such file" in done.stderr


def test_verify_names_the_file_that_differs(desk: Desk) -> None:
    desk.good("run", "cheap.yaml")
    assert desk.good("verify", "cheap").endswith("runs/cheap: 3 artifacts, every file as its receipt says\n")
    assert {entry["stage"] for entry in json.loads(desk.good("verify", "cheap", "--json"))} == desk.stages()
    traces = desk.run() / "stages" / "generate" / "traces.jsonl"
    whole = traces.read_bytes()
    for content, said in [
        (whole.replace(b"think", b"thonk", 1), "its content is not what the receipt's SHA-256 says"),
        (whole[:-1], f"{len(whole) - 1} bytes, but the receipt says {len(whole)}"),
        (None, "missing, though the receipt lists it"),
    ]:
        traces.unlink()
        if content is not None:
            traces.write_bytes(content)
        assert desk.refused("verify", "cheap").startswith(f"{traces}: {said}")
        traces.touch()
    traces.write_bytes(whole)
    desk.good("verify", str(desk.run()))


def test_logs(desk: Desk) -> None:
    desk.good("run", "cheap.yaml")
    assert "generating: 120/120 problems" in desk.good("logs", "cheap", "generate")
    assert "grading: 120/120 rows" in desk.good("logs", "cheap")
    assert desk.good("logs", "cheap") == desk.good("logs", "cheap", "curate")
    pipeline = f"{desk.command} logs cheap generate | head -n 1"
    piped = subprocess.run(["/bin/sh", "-c", pipeline], cwd=desk.root, capture_output=True, text=True, check=True)
    assert piped.stdout == "reasonforge: stage generate, attempt 1\n"
    assert piped.stderr == ""


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_logs_follow_until_they_are_stopped(desk: Desk, number: signal.Signals, exit_code: int) -> None:
    desk.good("run", "cheap.yaml", "--until", "problems")
    log = desk.run() / "logs" / "problems.log"
    log.write_text("first line\n")
    process = desk.start("logs", "cheap", "--follow")
    assert process.stdout is not None
    assert process.stdout.readline() == "first line\n"
    with open(log, "a") as handle:
        handle.write("another line\n")
    assert process.stdout.readline() == "another line\n"
    process.send_signal(number)
    assert process.wait() == exit_code
    assert "Traceback" not in process.communicate()[1]


def test_what_the_system_refuses_is_one_line(desk: Desk) -> None:
    desk.write("file", "")
    said = desk.refused("run", "cheap.yaml", "--runs-dir", "file", exit_code=1)
    assert said == f"{desk.root}/file/cheap: Not a directory"
    assert "Traceback" in desk("--debug", "run", "cheap.yaml", "--runs-dir", "file").stderr
