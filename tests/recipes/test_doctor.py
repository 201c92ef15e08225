"""`reasonforge doctor`: what it finds here, and on a machine that has only the ground floor's dependencies."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from desk import Desk

ROOT = Path(__file__).parents[2]
GROUND = ("click", "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection", "yaml",
          "rich", "pygments", "markdown_it", "mdurl")  # fmt: skip

TRAINED = """\
base: cheap.yaml
stages:
  base: {type: base_model, inputs: {problems: problems}, source: {type: scratch}}
"""


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A directory of links to the few packages that reasonforge itself needs."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in GROUND:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin)
        source = source.parent if source.name == "__init__.py" else source
        (folder / source.name).symlink_to(source)
    return folder


def without_packages(desk: Desk, packages: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The command line in a Python that sees no site-packages."""
    return subprocess.run(
        [sys.executable, "-S", "-c", "from reasonforge.cli import main; main()", *arguments],
        cwd=desk.root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, packages)))},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_is_here(desk: Desk) -> None:
    desk.write("t.yaml", TRAINED)
    found = json.loads(desk.good("doctor", "t.yaml", "--json"))
    assert found["lacking"] == {"problems": [], "generate": [], "curate": [], "base": []}
    assert found["found"]["torch"] == metadata.version("torch")
    assert found["found"]["trl"] == metadata.version("trl")
    assert set(found["found"]) >= {
        "python", "torch", "cuda", "transformer-engine", "apex", "nemo_toolkit", "vllm", "slurm", "enroot", "apptainer",
    }  # fmt: skip
    assert re.search(rf"^ +torch +{re.escape(metadata.version('torch'))} *$", desk.good("doctor"), re.MULTILINE)


def test_what_a_recipe_would_lack_on_a_bare_machine(desk: Desk, bare: Path) -> None:
    desk.write("t.yaml", TRAINED)
    done = without_packages(desk, bare, "doctor", "t.yaml", "--json")
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    assert answer["lacking"]["problems"] == answer["lacking"]["generate"] == []
    assert answer["lacking"]["curate"] == ["numpy"]  # to decontaminate
    assert {"torch", "transformers", "trl", "datasets"} <= set(answer["lacking"]["base"])
    assert len(answer["lacking"]["base"]) == len(set(answer["lacking"]["base"]))
    assert answer["found"]["torch"] is None
    assert answer["found"]["cuda"] is None
    text = without_packages(desk, bare, "doctor", "t.yaml")
    assert text.returncode == 1
    assert "stage base: lacks torch, transformers" in text.stdout
    assert "stage problems: has all it needs" in text.stdout
    desk.write("plain.yaml", "base: cheap.yaml\nstages: {curate: {decontaminate: null}}\n")
    assert without_packages(desk, bare, "doctor", "plain.yaml").returncode == 0


def test_a_bare_machine_plans_and_does_what_needs_nothing_more(desk: Desk, bare: Path) -> None:
    done = without_packages(desk, bare, "plan", "cheap.yaml", "--json")
    assert done.stdout == desk.good("plan", "cheap.yaml", "--json")


def test_a_bad_recipe_is_one_line(desk: Desk) -> None:
    assert desk.refused("doctor", "absent.yaml") == "absent.yaml: no such file"
