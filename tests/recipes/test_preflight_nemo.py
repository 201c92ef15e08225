"""The layouts and memory of the engines on Megatron-core, before anything is queued: what is refused, and that the
remedies work.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from desk import Desk
from known_shapes import write_config

from recipes.preflight.layout import errors
from recipes.preflight.memory import Training, training_memory
from recipes.preflight.parallelism import Batch, Parallelism
from recipes.preflight.stages import Need, needs
from recipes.recipe import Recipe, load_recipe
from slurm.plan import make_cluster_plan
from slurm.preflight import file_problems, site_problems
from slurm.site import load_site

RECIPES = Path(__file__).parents[2] / "recipes"
SHIPPED = {
    "distill-qwen2.5-7b-2n8g": "Qwen2.5-7B",
    "distill-qwen3-8b-2n8g-fp8": "Qwen3-8B",
    "distill-llama3.1-8b-2n8g": "Llama-3.1-8B",
    "distill-llama3.1-70b-8n8g": "Llama-3.1-70B",
    "distill-qwen2.5-1.5b-1n1g": "Qwen2.5-1.5B",
}
SEVEN = "distill-qwen2.5-7b-2n8g"
TWIN = ("distill.engine.type=megatron_bridge", "import.directory=bridge")
"""What makes a recipe of NeMo one of Megatron-Bridge."""
GPU = 79.1


def shipped(name: str, tmp_path: Path, *changes: str) -> Recipe:
    """A shipped recipe, with the shape of its model on the disk."""
    model = tmp_path / "model"
    if not model.exists():
        write_config(SHIPPED[name], model)
    settings = [f"stages.base.source.path={model}", *(f"stages.{change}" for change in changes)]
    return load_recipe(RECIPES / f"{name}.yaml", settings)


def need(recipe: Recipe, gpu: float | None = GPU) -> Need:
    return needs(recipe, {} if gpu is None else {"distill": gpu})["distill"]


def said(found: Need) -> list[str]:
    return [str(problem) for problem in errors(list(found.problems))]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_layout_is_sound_and_leaves_room_for_the_estimates_error(name: str, tmp_path: Path) -> None:
    found = need(shipped(name, tmp_path))
    assert found.problems == ()
    assert found.gpu is not None
    assert not found.gpu.tight
    assert found.remedy == ""


@pytest.mark.parametrize("name", SHIPPED)
def test_its_twin_of_megatron_bridge_takes_as_much(name: str, tmp_path: Path) -> None:
    found, nemo = need(shipped(name, tmp_path, *TWIN)), need(shipped(name, tmp_path))
    assert found.problems == ()
    assert found.gpu is not None
    assert nemo.gpu is not None
    assert found.gpu.total == nemo.gpu.total


def test_bridges_megatron_core_takes_more_gpus_than_kv_heads(tmp_path: Path) -> None:
    four = "distill.engine.parallelism={tensor: 4, sequence_parallel: true}"
    one = ("distill-qwen2.5-1.5b-1n1g", tmp_path, four, "distill.resources.gpus_per_node=4")
    (line,) = said(need(shipped(*one)))
    assert line.startswith("engine.parallelism.tensor, model.groups: found 4 for 2 KV heads")
    assert said(need(shipped(*one, *TWIN))) == []


def test_bridge_pads_no_vocabulary_unless_it_is_told_to(tmp_path: Path) -> None:
    write_config("Qwen2.5-7B", tmp_path / "model", vocab_size=152_001)
    changes = (*TWIN, "distill.engine.parallelism={tensor: 4}")
    (line,) = said(need(shipped(SEVEN, tmp_path, *changes)))
    assert line.startswith("engine.parallelism.tensor, model.vocabulary: found 4 for an embedding of 152001 rows")
    assert line.endswith("set pad_vocabulary: 4 in the import_checkpoint stage")
    assert said(need(shipped(SEVEN, tmp_path, *changes, "import.pad_vocabulary=4"))) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_it_plans_where_no_model_is(name: str, desk: Desk) -> None:
    assert "distill" in desk.good("plan", str(RECIPES / f"{name}.yaml"), "--site", "dgx-h100-pyxis")


def remedies(found: Need) -> list[list[str]]:
    """Each way that is offered, as overrides."""
    ways = found.remedy.removeprefix("what works: ").split("; or ")
    return [[f"distill.{change.replace(': ', '=')}" for change in way.split(", ")] for way in ways]


WRONG: dict[str, tuple[list[str], str]] = {
    "heads": (
        ["distill.engine.parallelism={tensor: 8, sequence_parallel: true}"],
        "engine.parallelism.tensor, model.heads: found 8 for 28 attention heads",
    ),
    "layers": (["distill.engine.parallelism.pipeline=3"], "engine.parallelism.pipeline, model.layers: found 3 stages"),
    "GPUs": (
        ["distill.resources.nodes=1", "distill.engine.parallelism.pipeline=4"],
        "engine.parallelism.tensor, engine.parallelism.pipeline, engine.parallelism.context: found 4 × 4 × 1 = 16",
    ),
    "batch": (["distill.engine.batch_size=514"], "engine.batch_size, engine.micro_batch_size: found 514 sequences"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("gpu", [GPU, None])
def test_what_the_remedy_offers_works(name: str, gpu: float | None, tmp_path: Path) -> None:
    changes, line = WRONG[name]
    found = need(shipped(SEVEN, tmp_path, *changes), gpu)
    assert any(text.startswith(line) for text in said(found)), said(found)
    assert found.gpu is None
    for way in remedies(found):
        again = need(shipped(SEVEN, tmp_path, *changes, *way), gpu)
        assert said(again) == []
        assert again.gpu is None or again.gpu.fits


def test_what_does_not_fit_gets_the_nearest_layouts_that_do(tmp_path: Path) -> None:
    changes = ["distill.engine.parallelism={tensor: 1}"]
    found = need(shipped(SEVEN, tmp_path, *changes))
    assert found.gpu is not None
    assert not found.gpu.fits
    for way in remedies(found):
        again = need(shipped(SEVEN, tmp_path, *changes, *way)).gpu
        assert again is not None
        assert again.fits
    assert need(shipped(SEVEN, tmp_path), 4.0).remedy.startswith("no layout on these GPUs works")


OWN: dict[str, tuple[list[str], str]] = {
    "rows": (
        ["tokenize.max_tokens=20000"],
        "engine.sequence_length: found 16384 tokens for rows of up to 20000; a row that is longer would end the "
        "training; take 20000 or more, or tokenize with a max_tokens of 16385 or less",
    ),
    "bf16 layers": (
        [
            "distill.engine.precision={type: fp8-current, first_layers_bf16: 9}",
            "distill.engine.parallelism={tensor: 2, pipeline: 4, sequence_parallel: true}",
        ],
        "engine.precision.first_layers_bf16, engine.parallelism.pipeline: found 9 for a stage of 7 layers",
    ),
    "vocabulary": (
        ["import.pad_vocabulary=1", "distill.engine.parallelism={tensor: 7}", "distill.engine.sequence_length=16387"],
        "engine.parallelism.tensor, model.vocabulary: found 7 for an embedding of 152064 rows; they are shared evenly; "
        "set pad_vocabulary: 7 in the import_checkpoint stage",
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_what_no_other_layout_would_mend(name: str, tmp_path: Path) -> None:
    changes, line = OWN[name]
    assert any(text.startswith(line) for text in said(need(shipped(SEVEN, tmp_path, *changes), None)))


def with_teacher(tmp_path: Path, teacher: str) -> Recipe:
    write_config(teacher, tmp_path / "teacher")
    document = yaml.safe_load((RECIPES / f"{SEVEN}.yaml").read_text())
    stages: dict[str, Any] = document["stages"]
    stages["great"] = {"type": "base_model", "source": {"type": "checkpoint", "path": str(tmp_path / "teacher")}}
    stages["import-great"] = {"type": "import_checkpoint", "inputs": {"model": "great"}, "directory": "nemo"}
    stages["distill"]["inputs"]["teacher"] = "import-great"
    stages["distill"]["engine"]["distillation"] = {"temperature": 1.0}
    stages["base"]["source"]["path"] = str(write_config("Qwen2.5-7B", tmp_path / "model"))
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(document))
    return load_recipe(tmp_path / "r.yaml")


def test_a_teacher_takes_its_share_and_speaks_of_the_same_tokens(tmp_path: Path) -> None:
    found = need(with_teacher(tmp_path, "Qwen2.5-14B"))
    assert said(found) == []
    assert found.gpu is not None
    assert found.gpu.bytes_of("teacher's weights") == pytest.approx(14.77e9 / 4 * 2, rel=0.01)
    assert found.gpu.bytes_of("teacher's logits") == 16_384 * 152_064 // 4 * 18
    other = tmp_path / "other"
    other.mkdir()
    (line,) = said(need(with_teacher(other, "Llama-3.1-8B")))
    assert line.startswith("inputs.teacher, model.vocabulary: found 128256 tokens beside the student's 152064")


def test_recomputing_some_layers_is_between_none_and_all(tmp_path: Path) -> None:
    from checkpoints_conversion.spec import read_spec

    model = read_spec(write_config("Llama-3.1-8B", tmp_path / "model") / "config.json")
    batch = Batch(sequence_length=8192, global_=8)

    def kept(**training: Any) -> int:
        table = training_memory(model, Parallelism(), batch, 8, "bf16", Training(**training), 2**40)
        return table.bytes_of("activations")

    full, none = kept(recompute="full"), kept(recompute="none")
    block = {count: kept(recompute="full", recompute_method="block", recompute_layers=count) for count in (8, 16, 32)}
    assert full == block[32] < block[16] < block[8] < none
    assert none - block[8] == pytest.approx((none - full) / 4)
    assert kept(recompute="full", recompute_layers=4) == full // 4


def test_the_plan_shows_the_memory_and_refuses_in_lines(tmp_path: Path, desk: Desk) -> None:
    model = write_config("Qwen2.5-7B", tmp_path / "qwen")
    common = ("plan", str(RECIPES / f"{SEVEN}.yaml"), "--site", "dgx-h100-pyxis", "--set")
    path = f"stages.base.source.path={model}"
    planned = json.loads(desk.good(*common, path, "--json"))
    assert planned["memory"]["distill"]["capacity"] == int(GPU * 2**30)
    assert planned["remarks"] == []
    layout = "stages.distill.engine.parallelism={tensor: 8, sequence_parallel: true}"
    done = desk(*common, path, "--set", layout)
    heads, groups, remedy = done.stderr.splitlines()
    assert done.returncode == 2
    assert heads.startswith("error: stages.distill: engine.parallelism.tensor, model.heads: found 8")
    assert groups.startswith("error: stages.distill: engine.parallelism.tensor, model.groups: found 8")
    assert remedy.startswith("error: stages.distill: this layout cannot train; what works: engine.parallelism.tensor: ")


def test_an_image_whose_tag_does_not_fit_is_refused_and_a_missing_model_named(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES / f"{SEVEN}.yaml")
    image = "nvcr.io/nvidia/nemo:26.02"
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"extends": "dgx-h100-pyxis", "image": image}))
    site = load_site(str(tmp_path / "site.yaml"))
    plan = make_cluster_plan(recipe, site, Path("/runs/x"), "/opt/python")
    (problem,) = site_problems(recipe, site, plan)
    assert str(problem).startswith(f"stages.distill: image {image}: nemo_toolkit 2.7.0 cannot train with megatron-core")
    twin = load_recipe(RECIPES / f"{SEVEN}.yaml", [f"stages.{change}" for change in TWIN])
    assert list(site_problems(twin, site, make_cluster_plan(twin, site, Path("/runs/x"), "/opt/python"))) == []
    (missing,) = [str(it) for it in file_problems(recipe, site, plan) if "stages.base" in str(it)]
    assert missing.startswith("stages.base.source.path: models/Qwen2.5-7B-Instruct/config.json: no such file")


def test_an_offline_site_refuses_models_by_name(tmp_path: Path) -> None:
    engines = [{"type": "vllm", "model_path": "Qwen/QwQ-32B"}, {"type": "hf", "model_path": str(tmp_path)}]
    engine = yaml.safe_dump({"type": "several", "engines": engines}, default_flow_style=True, width=10_000).strip()
    recipe = load_recipe(RECIPES / "distill-grpo-qwen2-tiny.yaml", [f"stages.generate.engine={engine}"])
    (tmp_path / "site.yaml").write_text("extends: single-machine\noffline: true\n")
    site = load_site(str(tmp_path / "site.yaml"))
    plan = make_cluster_plan(recipe, site, Path("/runs/x"), "/opt/python")
    (problem,) = file_problems(recipe, site, plan)
    assert str(problem).startswith(
        "stages.generate.engine.model_path: Qwen/QwQ-32B is no directory, and the site is off"
    )


def test_a_conversion_needs_its_memory(tmp_path: Path) -> None:
    recipe = shipped(SEVEN, tmp_path, "import.resources.memory_gb=0.05")
    site = load_site("dgx-h100-pyxis")
    (problem,) = site_problems(recipe, site, make_cluster_plan(recipe, site, Path("/runs/x"), "/opt/python"))
    assert str(problem) == (
        "stages.import.resources.memory_gb: is 0.05, but a conversion takes 67.1 MB; ask for 1, with room for Python"
    )
