"""What a recipe says is what NeMo is given: every option in the nemo-run Partial, and FP8 down to Transformer Engine.

NeMo builds all configurations in one process of its own (nemo_configuration_side.py) and trains nothing. Of FP8,
megatron-core's own function is asked in a second one, over Transformer Engine's recipes (fp8_side.py).
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from known_shapes import SHAPES, nemo_directory
from megatron_variants import RECIPE_NAMES, SHIPPED, VARIANTS, options_of, transformer_engine_mismatches
from nemo_place import ROOT, nemo_environment, nemo_python

from recipes.engines.megatron.options import BUCKET
from recipes.engines.nemo.configuration import NEMO_KEYS
from recipes.engines.nemo.options import NeMoEngine
from recipes.recipe import load_recipe
from recipes.stages.distill import DistillStage

pytestmark = pytest.mark.xdist_group("nemo")

HERE = Path(__file__).parent
PLUGIN_PRECISION = {"fp32": "32"}


def engine_of(variant: str) -> NeMoEngine:
    return NeMoEngine.model_validate({"steps": 50, **VARIANTS[variant]})


@pytest.fixture(scope="module")
def nemo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The keys of every configuration, shipped or varied."""
    root = tmp_path_factory.mktemp("configurations")
    directories = {name: str(nemo_directory(name, root)) for name in SHAPES}
    trainings: dict[str, dict[str, Any]] = {}
    for name, shape in SHIPPED.items():
        stage = load_recipe(ROOT / "recipes" / f"{name}.yaml").stages["distill"]
        assert isinstance(stage, DistillStage)
        trainings[name] = {
            "engine": stage.engine.model_dump(mode="json"),
            "model": directories[shape],
            "nodes": stage.resources.nodes,
            "gpus_per_node": stage.resources.gpus_per_node,
        }
    for name in VARIANTS:
        trainings[name] = {
            "engine": engine_of(name).model_dump(mode="json"),
            "model": directories["Qwen2.5-7B"],
            "teacher": directories["Qwen2.5-14B"] if name == "distilled" else None,
            "nodes": 4,
            "gpus_per_node": 8,
        }
    job = {"trainings": trainings, "models": directories, "scratch": str(root / "scratch")}
    return run("nemo_configuration_side.py", job, root)


def run(script: str, job: dict[str, Any], root: Path) -> dict[str, Any]:
    """Let NeMo's Python do a job; its answer."""
    (root / "job.json").write_text(json.dumps(job))
    process = subprocess.run(
        [nemo_python(), str(HERE / script), str(root / "job.json"), str(root / "answer.json")],
        env=nemo_environment(root),
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    found: dict[str, Any] = json.loads((root / "answer.json").read_text())
    return found


def expected(option: str, key: str, engine: NeMoEngine) -> Any:
    """What NeMo must be given for an option; the option itself where nothing is said here."""
    precision, layout, overlap = engine.precision, engine.parallelism, engine.overlap
    said: dict[str, Any] = {
        "optim.lr_scheduler.min_lr": engine.learning_rate * engine.min_learning_rate_ratio,
        "trainer.plugins.precision": PLUGIN_PRECISION.get(precision.type, "bf16-mixed"),
        "trainer.plugins.fp8_recipe": RECIPE_NAMES.get(precision.type),
        "model.config.recompute_granularity": None if engine.recompute.type == "none" else engine.recompute.type,
        "model.config.transformer_layer_spec": {"te": "transformer_engine_layer_spec", "local": "local_layer_spec"}[
            engine.layer_spec
        ],
        "trainer.limit_val_batches": engine.validation_batches if engine.validate_every else 0,
        "trainer.val_check_interval": engine.validate_every or engine.steps,
        "trainer.strategy.ckpt_optim_fully_reshardable": engine.fully_reshardable or None,
    }
    if option == "overlap.parameters" and overlap.parameters is None:
        return overlap.gradients and engine.distributed_optimizer
    if option.startswith("fusions.") and engine.layer_spec == "local":
        return bool(options_of(engine)[option])
    if option == "overlap.pipeline" and overlap.pipeline is None:
        return layout.virtual_pipeline is not None
    if option == "profile.type" and engine.profile is not None:
        own = {"nsys": "NsysCallback", "torch": "PytorchProfilerCallback"}[engine.profile.type]
        return own if key.endswith(own) else None
    if key.startswith("trainer.callbacks.") and engine.profile is not None:
        own = {"nsys": "NsysCallback", "torch": "PytorchProfilerCallback"}[engine.profile.type]
        if option.startswith("profile.") and f".{own}." not in key:
            return None
        if option == "profile.last_step":
            return engine.profile.last_step + 1
    return said[key] if key in said else options_of(engine)[option]


def mismatches(engine: NeMoEngine, keys: dict[str, Any]) -> list[str]:
    """Every option whose value is not where the table says."""
    wrong = []
    for option in options_of(engine):
        for key in NEMO_KEYS.get(option, ()):
            left_to_nemo = options_of(engine)[option] is None and (key not in keys or option == "sequence_length")
            if key.startswith("recipes.") or left_to_nemo:
                continue
            if ".MegatronCommOverlapCallback." in key and engine.layer_spec == "local":
                continue  # asks the GPU what it is
            want = expected(option, key, engine)
            if keys.get(key) != want:
                wrong.append(f"{option}: {key} is {keys.get(key)!r}, not {want!r}")
    return wrong


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_is_what_nemo_is_given(name: str, nemo: dict[str, Any]) -> None:
    stage = load_recipe(ROOT / "recipes" / f"{name}.yaml").stages["distill"]
    assert isinstance(stage, DistillStage)
    assert isinstance(stage.engine, NeMoEngine)
    keys = nemo["trainings"][name]["keys"]
    assert mismatches(stage.engine, keys) == []
    assert (keys["trainer.num_nodes"], keys["trainer.devices"]) == (
        stage.resources.nodes,
        stage.resources.gpus_per_node,
    )
    config, _ = SHAPES[SHIPPED[name]]
    assert keys["model.config.num_layers"] == config["num_hidden_layers"]
    assert keys["model.config.vocab_size"] >= config["vocab_size"]
    assert keys["model.config.share_embeddings_and_output_weights"] == config["tie_word_embeddings"]
    assert keys["model.config.calculate_per_token_loss"]
    assert not keys["trainer.strategy.ddp.average_in_collective"]
    assert keys["trainer.strategy.ckpt_load_strictness"] is None


@pytest.mark.parametrize("name", VARIANTS)
def test_every_option_is_found_where_the_table_says(name: str, nemo: dict[str, Any]) -> None:
    assert mismatches(engine_of(name), nemo["trainings"][name]["keys"]) == []


def test_the_variants_change_every_option() -> None:
    plain = options_of(engine_of("plain"))
    changed = {
        option
        for name in VARIANTS
        for option, value in options_of(engine_of(name)).items()
        if value != plain.get(option)
    }
    ours = {option for option, keys in NEMO_KEYS.items() if keys[0].startswith("recipes.")}
    assert set(NEMO_KEYS) - ours - {"steps"} <= changed


def test_a_changed_option_changes_nemos_key(nemo: dict[str, Any]) -> None:
    """So that no key only happens to hold the value that is asked for."""
    plain, keys = options_of(engine_of("plain")), {name: nemo["trainings"][name]["keys"] for name in VARIANTS}
    others = {name: options_of(engine_of(name)) for name in VARIANTS}
    for option, named in NEMO_KEYS.items():
        changing = [name for name in VARIANTS if others[name].get(option, plain.get(option)) != plain.get(option)]
        for key in named:
            if changing and not key.startswith("recipes."):
                assert any(keys[name].get(key) != keys["plain"].get(key) for name in changing), (option, key)


def test_buckets_are_the_same_for_any_number_of_copies(nemo: dict[str, Any]) -> None:
    """The distributed optimizer's state is saved by them: what NeMo is given, and what it makes of that."""
    trainings = nemo["trainings"].values()
    given = {training["keys"]["trainer.strategy.ddp.bucket_size"] for training in trainings}
    assert given == {size for training in trainings for size in training.get("buckets", ())} == {BUCKET}


def test_the_teachers_logits(nemo: dict[str, Any]) -> None:
    keys = nemo["trainings"]["distilled"]["keys"]
    assert (keys[""], keys["model"], keys["teacher"]) == ("distill", "Qwen2Model", "Qwen2Model")
    assert (keys["model.config.num_layers"], keys["teacher.config.num_layers"]) == (28, 48)
    assert not keys["model.config.calculate_per_token_loss"]  # ModelOpt's loss comes as a mean
    assert keys["teacher.config.transformer_layer_spec"] == keys["model.config.transformer_layer_spec"]


def test_nemos_own_recipe_is_found_for_each_released_shape(nemo: dict[str, Any]) -> None:
    assert nemo["models"] == {name: recipe for name, (_, recipe) in SHAPES.items()}


IN_FP8 = [name for name in VARIANTS if "fp8" in name] + ["distill-qwen3-8b-2n8g-fp8"]


@pytest.fixture(scope="module")
def transformer_engine(nemo: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What megatron-core gives Transformer Engine, for the settings that NeMo made."""
    job = {name: nemo["trainings"][name]["fp8"]["model"] for name in IN_FP8}
    return run("fp8_side.py", job, tmp_path_factory.mktemp("fp8"))


@pytest.mark.parametrize("name", IN_FP8)
def test_fp8_reaches_transformer_engine(name: str, nemo: dict[str, Any], transformer_engine: dict[str, Any]) -> None:
    engine = engine_of(name) if name in VARIANTS else shipped_engine(name)
    precision = engine.precision.model_dump()
    assert transformer_engine_mismatches(precision, transformer_engine[name]) == []
    made = nemo["trainings"][name]["fp8"]
    assert made["ddp"]["fp8_param_gather"] == precision["fp8_parameters"]
    assert made["optimizer"]["fp8_recipe"] == made["model"]["fp8_recipe"] == RECIPE_NAMES[engine.precision.type]
    reused = engine.precision.type == "mxfp8" and precision["fp8_parameters"]
    assert made["ddp"]["reuse_grad_buf_for_mxfp8_param_ag"] == reused
    assert made["optimizer"]["reuse_grad_buf_for_mxfp8_param_ag"] == reused


def shipped_engine(name: str) -> NeMoEngine:
    stage = load_recipe(ROOT / "recipes" / f"{name}.yaml").stages["distill"]
    assert isinstance(stage, DistillStage)
    assert isinstance(stage.engine, NeMoEngine)
    return stage.engine
