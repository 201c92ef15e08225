"""The plan of a run on a cluster: golden scripts for each shipped recipe, site and runtime, and what is refused."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reasonforge.cli import main
from reasonforge.config import validate
from reasonforge.document import Document, read_document
from reasonforge.errors import RequestError
from recipes.recipe import Recipe, load_recipe
from slurm.plan import ClusterPlan, make_cluster_plan
from slurm.preflight import disk_problems, site_problems
from slurm.site import SHIPPED, Site, load_site

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
GOLDEN = Path(__file__).parents[1] / "golden/slurm"
PYTHON = "/opt/reasonforge/bin/python"
VENV = {"type": "venv", "path": "/opt/reasonforge"}

SITES: dict[str, dict[str, Any]] = {
    "dgx-h100-pyxis": {},
    "dgx-h100-enroot": {"extends": "dgx-h100-pyxis", "runtime": {"type": "enroot"}},
    "apptainer-centre": {},
    "single-machine": {},
}


def site(name: str, tmp_path: Path) -> Site:
    changes = SITES[name]
    if not changes:
        return load_site(name)
    import yaml

    (tmp_path / "site.yaml").write_text(yaml.safe_dump(changes))
    return load_site(str(tmp_path / "site.yaml"))


def text_of(plan: ClusterPlan) -> str:
    """Every script with what the StageJob starts in it."""
    parts = []
    for job in plan.jobs:
        after = f" after {', '.join(job.after)}" if job.after else ""
        environment = "".join(f"# {name}={value}\n" for name, value in job.environment.items())
        parts.append(f"##### {job.name}{after}\n{job.script}\n# the step:\n{environment}# {shlex.join(job.step)}\n")
    return "\n".join(parts)


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_golden_scripts(recipe: Path, name: str, tmp_path: Path) -> None:
    """Made anew with UPDATE_GOLDEN=1; a review then sees what changed. A site may lack what a recipe asks for."""
    loaded = load_recipe(recipe)
    try:
        found = text_of(make_cluster_plan(loaded, site(name, tmp_path), Path("/data/runs") / loaded.name, PYTHON))
    except RequestError as error:
        found = f"refused: {error}\n"
    golden = GOLDEN / f"{recipe.stem}.{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(found)
    assert found == golden.read_text()


@pytest.mark.parametrize("name", SITES)
def test_scripts_are_clean_shell(name: str, tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no shellcheck, and CI=true")
        pytest.skip("no shellcheck")
    loaded = load_recipe(RECIPES[0])
    paths = []
    root = tmp_path / ("run" if "pyxis" in name else "a user's run")  # pyxis mounts no path with a blank, and says so
    for job in make_cluster_plan(loaded, site(name, tmp_path), root, PYTHON).jobs:
        paths.append(tmp_path / f"{job.name}.sh")
        paths[-1].write_text(job.script)
    for command in (["bash", "-n"], ["shellcheck", "--exclude=SC1091"]):
        for path in paths:
            done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr


ARRAY = """\
name: array
stages:
  problems: {type: problems, source: {type: running_sum, train: 50, eval: 5}}
  generate:
    type: generate
    inputs: {problems: problems}
    engine: {type: programmatic}
    resources: {array: 2500, gpus_per_node: 2, hours: 2}
"""
TWO = """\
name: two
partitions: {cpu: {nodes: 4, cpus_per_node: 8, max_hours: 24}, gpu: {nodes: 4, gpus_per_node: 4, max_hours: 12}}
cpu_partition: cpu
gpu_partition: gpu
"""


def load(tmp_path: Path, recipe: str, site_text: str = TWO) -> tuple[Recipe, Site]:
    (tmp_path / "r.yaml").write_text(recipe)
    (tmp_path / "s.yaml").write_text(site_text)
    return load_recipe(tmp_path / "r.yaml"), load_site(str(tmp_path / "s.yaml"))


def test_an_array_is_split_at_the_sites_limit(tmp_path: Path) -> None:
    recipe, found = load(tmp_path, ARRAY, TWO + "max_array: 1000\n")
    plan = make_cluster_plan(recipe, found, Path("/runs/array"), PYTHON)
    jobs = {job.name: job for job in plan.jobs}
    assert list(jobs) == ["problems", "generate.parts", "generate.parts-2", "generate.parts-3", "generate"]
    assert [job.parts for job in plan.of_stage("generate")] == [(0, 1000), (1000, 1000), (2000, 500), None]
    assert "#SBATCH --array=0-999%256\n" in jobs["generate.parts"].script
    assert "#SBATCH --array=0-499%256\n" in jobs["generate.parts-3"].script
    assert jobs["generate"].after == ("generate.parts", "generate.parts-2", "generate.parts-3")
    assert "--gres" in jobs["generate.parts"].script
    assert "--gres" not in jobs["generate"].script
    assert jobs["generate.parts-3"].part_numbers[:2] == [2000, 2001]
    assert sum(job.gpu_hours for job in plan.jobs) == 2500 * 2 * 2


def test_only_what_is_left_waits_for_what_is_left(tmp_path: Path) -> None:
    recipe, found = load(tmp_path, ARRAY)
    plan = make_cluster_plan(recipe, found, Path("/runs/array"), PYTHON, ["generate"])
    assert (plan.jobs[0].name, plan.jobs[0].after) == ("generate.parts", ())


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (ARRAY.replace("hours: 2", "hours: 0.05"), "stages.generate.resources.hours: 3 min leave no time for work"),
        (ARRAY.replace("array: 2500", "nodes: 2"), "resources.nodes: is 2, but a generate stage runs on one"),
        (ARRAY.replace("eval: 5}}", "eval: 5}, resources: {array: 3}}"), "resources.array: is 3, but"),
    ],
)  # fmt: skip
def test_what_no_job_can_be_made_of(recipe: str, told: str, tmp_path: Path) -> None:
    loaded, found = load(tmp_path, recipe)
    with pytest.raises(RequestError) as error:
        make_cluster_plan(loaded, found, Path("/runs/array"), PYTHON)
    assert told in str(error.value)


def test_what_the_site_does_not_have(tmp_path: Path) -> None:
    changed = ARRAY.replace("gpus_per_node: 2, hours: 2", "gpus_per_node: 8, hours: 13, cpus_per_task: 4")
    recipe, found = load(tmp_path, changed)
    problems = site_problems(recipe, found, make_cluster_plan(recipe, found, Path("/runs/array"), PYTHON))
    assert [str(problem) for problem in problems] == [
        "stages.generate.resources.gpus_per_node: is 8, but partition gpu has 4; 4 or less",
        "stages.generate.resources.hours: is 13, but partition gpu has 12; 12 or less",
    ]


LARGE = """\
name: large
seed: 1
stages:
  problems: {type: problems, source: {type: running_sum, train: 100, eval: 5}}
  base: {type: base_model, source: {type: checkpoint, path: MODEL}}
  import: {type: import_checkpoint, inputs: {model: base}}
  evaluate:
    type: evaluate
    inputs: {model: base, problems: problems}
    engine: {type: hf, batch_size: 8}
    sampling: {max_tokens: 1024}
    grader: {type: exact}
    resources: {gpus_per_node: 1}
"""


def large(tmp_path: Path, layers: int) -> Recipe:
    """A recipe over a model of Llama 3.1 8B's shape with so many layers; 32 are the model's own."""
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": layers,
        "max_position_embeddings": 131_072,
    }
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    (tmp_path / "large.yaml").write_text(LARGE.replace("MODEL", str(tmp_path / "model")))
    return load_recipe(tmp_path / "large.yaml")


def test_a_model_that_no_gpu_holds_is_refused_before_it_is_queued(tmp_path: Path) -> None:
    found = load_site("dgx-h100-pyxis")
    for layers, told in ((32, []), (320, ["stages.evaluate: takes about"])):
        recipe = large(tmp_path, layers)
        problems = site_problems(recipe, found, make_cluster_plan(recipe, found, Path("/runs/large"), PYTHON))
        assert [str(problem)[: len(told[0])] for problem in problems] == told


def test_a_result_that_no_disk_holds_is_refused_before_it_is_queued(tmp_path: Path) -> None:
    found = load_site("dgx-h100-pyxis")
    for layers, refused in ((1, False), (2**24, True)):
        recipe = large(tmp_path, layers)
        plan = make_cluster_plan(recipe, found, tmp_path / "runs/large", PYTHON)
        problems = [str(problem) for problem in disk_problems(recipe, found, plan, tmp_path / "runs/large")]
        assert bool(problems) == refused
        assert all("stages import: their results need" in problem for problem in problems)


def test_the_plan_shows_the_memory(tmp_path: Path) -> None:
    large(tmp_path, 32)
    command = ["plan", str(tmp_path / "large.yaml"), "--site", "dgx-h100-pyxis"]
    shown = CliRunner().invoke(main, command)
    assert shown.exit_code == 0, shown.output
    assert "key-value cache" in shown.output
    data = json.loads(CliRunner().invoke(main, [*command, "--json"]).output)["memory"]
    assert list(data) == ["evaluate"]
    assert data["evaluate"]["bytes"]["weights"] == 2 * 8_030_261_248  # the published number of parameters


@pytest.mark.parametrize("root", ["/runs/50%", "/runs/a\nb", "/runs/a\\b"])
def test_paths_that_slurm_would_change(root: str, tmp_path: Path) -> None:
    recipe, found = load(tmp_path, ARRAY)
    with pytest.raises(RequestError, match="choose another --runs-dir"):
        make_cluster_plan(recipe, found, Path(root), PYTHON)


def test_a_line_break_cannot_end_an_sbatch_line(tmp_path: Path) -> None:
    recipe, found = load(tmp_path, ARRAY, TWO + 'account: "a\\n#SBATCH --uid=0"\n')
    with pytest.raises(RequestError, match=r"account: .* has a line break, which ends an #SBATCH line"):
        make_cluster_plan(recipe, found, Path("/runs/array"), PYTHON)


WORDS = st.text(
    st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="\u2028\u2029\x85"), min_size=1, max_size=30
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    account=WORDS, folder=WORDS.filter(lambda it: "/" not in it and it not in (".", "..") and not set(it) & set("%\\"))
)
def test_every_value_survives_the_shell(account: str, folder: str, tmp_path: Path) -> None:
    """bash reads the command as it was meant, and each #SBATCH line is one word with its value in it."""
    document = read_document(_written(tmp_path))
    given_site = validate(Site, Document("site", {**document.data, "account": account}, {}))
    (tmp_path / "r.yaml").write_text(ARRAY)
    root = Path("/runs") / folder
    python = "/opt/it's $(touch here) `x`/python"
    (first, *_) = make_cluster_plan(load_recipe(tmp_path / "r.yaml"), given_site, root, python).jobs
    lines = first.script.splitlines()
    options = dict(
        shlex.split(line.removeprefix("#SBATCH "))[0].partition("=")[::2] for line in lines if "#SBATCH" in line
    )
    assert options["--account"] == account
    assert options["--comment"] == f"reasonforge {root}"
    command = lines[-1] if lines[-1] else lines[-2]
    shown = subprocess.run(
        ["/bin/bash", "-c", f"python() {{ printf '%s\\0' \"$@\"; }}; python {command}"], capture_output=True, check=True
    ).stdout.decode()
    assert shown.split("\0")[:-1] == [python, "-u", "-m", "submitit.core._submit", str(root / "slurm")]


def _written(tmp_path: Path) -> Path:
    path = tmp_path / "two.yaml"
    path.write_text(TWO)
    return path


def test_shipped_sites_are_all_in_the_golden_files() -> None:
    assert {path.stem for path in SHIPPED.glob("*.yaml")} <= set(SITES)
