"""`python -m benchmarks.gpu_distill`, as small as can be, with the real NeMo on the CPU, and where it refuses."""

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from desk import QUIET
from nemo_place import ROOT, SHIM, nemo_python

from benchmarks.gpu_distill import CAPABILITY, compare, from_metrics, recipe_of, table
from benchmarks.gpu_distill_side import model_config
from reasonforge.files import read_json, read_jsonl, write_json
from recipes.preflight.stages import needs
from recipes.preflight.table import GIB
from recipes.recipe import load_recipe

pytestmark = pytest.mark.xdist_group("nemo")

ONE_GPU = """\
import runpy, sys, torch
torch.cuda.device_count = lambda: 1
del sys.argv[:2]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def launcher(path: Path, *, trains: bool = True) -> Path:
    """NeMo's Python on a machine that says to have a GPU; only a stage is worth NeMo's whole pretence."""
    training = f'exec {nemo_python()} {SHIM} "$@"' if trains else f'exec {nemo_python()} "$@"'
    path.write_text(
        f'#!/bin/sh\ncase "$*" in *run_stage*) {training} ;; esac\nexec {nemo_python()} -c \'{ONE_GPU}\' "$@"\n'
    )
    path.chmod(0o755)
    return path


def benchmark(python: Path | str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    own = {**QUIET, "REASONFORGE_NEMO_PYTHON": str(python), "HF_HUB_OFFLINE": "1"}
    outside_slurm = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_distill", "--size", "tiny", *map(str, arguments)],
        cwd=ROOT,
        env={**outside_slurm, **own},
        capture_output=True,
        text=True,
        check=False,
    )


SMALL = ("--layers", "local", "--steps", 4, "--warmup", 1, "--batch", 4)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one measurement left all that it made."""
    root = tmp_path_factory.mktemp("gpu-distill")
    asked = (*SMALL, "--work", root, "--out", root / "out.json", "--precision", "bf16", "fp8-current")
    done = benchmark(launcher(root / "python"), *asked)
    assert done.returncode == 0, done.stderr + done.stdout
    (root / "said").write_text(done.stdout)
    return root


def test_the_figures_are_those_of_the_metrics_and_of_preflight(work: Path) -> None:
    report = read_json(work / "out.json")
    found, peer = report["variants"]["bf16"], report["peer"]
    steps = list(read_jsonl(work / "run/stages/bf16/metrics.jsonl"))
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    seconds = sum(row["step_time"] for row in steps[1:])
    tokens = sum(row["step_time"] * row["tokens_per_second_per_gpu"] for row in steps[1:])
    assert found["steps"] == 3
    assert found["step_s"] == pytest.approx(seconds / 3)
    assert found["tokens_per_second"] == pytest.approx(tokens / seconds)
    assert found["over_peer"] == pytest.approx(tokens / seconds / peer["tokens_per_second"])
    assert found["loss"] == steps[-1]["loss"]
    assert abs(found["loss"] - peer["loss"]) < 0.1  # one model: ln 512 = 6.24 at the beginning, and not much less yet
    estimate = needs(load_recipe(work / "recipe.yaml"), {"bf16": 141.0})["bf16"].gpu
    assert estimate is not None
    assert found["estimate_gib"] == estimate.allocated / GIB > 0
    assert found["memory_gib"] is found["mfu"] is None  # without a GPU nobody knows
    assert list(report["left_out"]) == ["fp8-current"]
    assert report["environment"]["packages"].keys() >= {"torch", "transformers", "nemo_toolkit", "megatron-core"}
    said = (work / "said").read_text()
    assert f"| bf16 | {found['tokens_per_second']:.4g} | {found['over_peer']:.4g} |" in said
    assert "fp8-current is left out: FP8 is Transformer Engine's" in said


def test_a_way_that_fails_leaves_the_others(work: Path, tmp_path: Path) -> None:
    """A stage that finds no GPU after all, in the directory of an earlier measurement: its line stands in the place of
    figures, also of the earlier ones."""
    python = launcher(tmp_path / "python", trains=False)
    done = benchmark(python, *SMALL, "--work", work, "--out", tmp_path / "out.json")
    assert done.returncode == 1, done.stderr
    report = read_json(tmp_path / "out.json")
    assert "this machine has no GPU that torch can use" in report["variants"]["bf16"]["error"]
    assert report["peer"]["tokens_per_second"] > 0


def refused(python: Path | str, *arguments: str) -> str:
    done = benchmark(python, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    return line


def test_a_machine_that_cannot_is_refused_in_a_line(tmp_path: Path) -> None:
    assert "this machine has no GPU that torch can use" in refused(nemo_python())
    line = refused(launcher(tmp_path / "python"))
    assert line.startswith("error: --layers te:")
    assert line.endswith("has no Transformer Engine; take NVIDIA's NeMo container, or measure bf16 with --layers local")
    assert "has no nemo, nemo_run" in refused(sys.executable)
    line = refused(sys.executable, "--layers", "local", "--precision", "fp8-delayed", "mxfp8")
    assert line == "error: --precision: FP8 is Transformer Engine's, and --layers is local; take bf16"


@pytest.mark.parametrize(("engine", "layers"), [("nemo", "te"), ("nemo", "local"), ("megatron_bridge", "te")])
def test_what_is_measured_on_a_gpu_passes_preflight(engine: str, layers: str, tmp_path: Path) -> None:
    """The recipe of a GPU of 80 GB, as far as it can be tried without one."""
    model_config("1b").save_pretrained(tmp_path / "hf")
    options = Namespace(engine=engine, layers=layers, steps=30, batch=8, length=8192)
    precisions = [*CAPABILITY] if layers == "te" else ["bf16"]
    write_json(tmp_path / "recipe.yaml", recipe_of(options, precisions, tmp_path))
    found = needs(load_recipe(tmp_path / "recipe.yaml"), dict.fromkeys(precisions, 80.0))
    for precision in precisions:
        table = found[precision].gpu
        assert table is not None
        assert table.fits
        assert found[precision].problems == ()


def test_means_are_over_time_and_memory_is_the_highest() -> None:
    def row(step: int, seconds: float, speed: float, memory: float) -> dict[str, float]:
        known = {"tokens_per_second_per_gpu": speed, "tflops_per_gpu": 2 * speed, "mfu": speed / 1024}
        return {"step": step, "loss": 9 - step, "step_time": seconds, "memory_gib": memory, **known}

    found = from_metrics([row(1, 60, 1, 7), row(2, 1, 128, 5), row(3, 3, 256, 6)], warmup=1)
    assert found["tokens_per_second"] == (128 + 3 * 256) / 4
    assert (found["tflops"], found["mfu"], found["step_s"]) == (448, 0.21875, 2)
    assert (found["memory_gib"], found["reserved_gib"], found["loss"]) == (7, None, 6)
    compare(found, {"tokens_per_second": 112.0}, 6.3)
    assert (found["over_peer"], found["estimate_over_memory"]) == (2, pytest.approx(0.9))
    shown = table({"variants": {"bf16": found, "mxfp8": {"error": "stage mxfp8: no"}}, "peer": {"error": "peer: no"}})
    assert "| bf16 | 224 | 2 | 0.2188 | 2 | 7 | 6.3 | 0.9 | 6 |" in shown
    assert shown.endswith("| mxfp8 | stage mxfp8: no |\n| transformers | peer: no |")
