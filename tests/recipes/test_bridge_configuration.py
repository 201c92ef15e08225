"""What a recipe says is what Megatron-Bridge is given: every option in its ConfigContainer, after Bridge has laid its
own rules over it, and FP8 down to Transformer Engine.

Bridge builds all configurations in one process of its own (bridge_configuration_side.py) and trains nothing. Of FP8,
megatron-core's own function is asked in a second one, over Transformer Engine's recipes (fp8_side.py).
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from bridge_place import bridge_environment, bridge_python
from known_shapes import SHAPES, bridge_directory
from megatron_variants import RECIPE_NAMES, SHIPPED, VARIANTS, options_of, transformer_engine_mismatches

from recipes.engines.megatron.options import BUCKET
from recipes.engines.megatron_bridge.configuration import BRIDGE_KEYS
from recipes.engines.megatron_bridge.options import MegatronBridgeEngine
from recipes.recipe import load_recipe
from recipes.stages.distill import DistillStage

pytestmark = pytest.mark.xdist_group("nemo")

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TWIN = ["stages.distill.engine.type=megatron_bridge", "stages.import.directory=bridge"]
"""What makes a recipe of NeMo one of Bridge."""

OF_MOE = {"parallelism": {"tensor": 4, "expert": 4, "expert_tensor": 2, "sequence_parallel": True}}
BRIDGE_VARIANTS = {
    # Bridge finds experts wanting in a model that has none.
    name: {**given, "parallelism": {**given["parallelism"], "expert": 1}} if name == "layout" else given
    for name, given in VARIANTS.items()
} | {
    "experts": OF_MOE,
    "family's own kernels": {},
    "traced to the end": {"profile": {"type": "torch", "first_step": 48, "last_step": 48}},
}
MODELS = {"experts": "Qwen3-30B-A3B", "family's own kernels": "Llama-3.1-8B"}
GPUS, DEFAULT = 32, "Qwen2.5-7B"


def engine_of(variant: str) -> MegatronBridgeEngine:
    return MegatronBridgeEngine.model_validate({"steps": 50, **BRIDGE_VARIANTS[variant]})


def twin(name: str) -> tuple[MegatronBridgeEngine, int]:
    """The engine of a shipped recipe's twin, and its GPUs."""
    stage = load_recipe(ROOT / "recipes" / f"{name}.yaml", TWIN).stages["distill"]
    assert isinstance(stage, DistillStage)
    assert isinstance(stage.engine, MegatronBridgeEngine)
    return stage.engine, stage.resources.nodes * stage.resources.gpus_per_node


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every configuration, shipped or varied, by name."""
    root = tmp_path_factory.mktemp("configurations")
    wanted = {DEFAULT, "Qwen2.5-14B", *SHIPPED.values(), *MODELS.values()}
    directories = {name: str(bridge_directory(name, root)) for name in wanted}
    trainings: dict[str, dict[str, Any]] = {}
    for name, shape in SHIPPED.items():
        engine, gpus = twin(name)
        trainings[name] = {"engine": engine.model_dump(mode="json"), "model": directories[shape], "gpus": gpus}
    for name in BRIDGE_VARIANTS:
        trainings[name] = {
            "engine": engine_of(name).model_dump(mode="json"),
            "model": directories[MODELS.get(name, DEFAULT)],
            "teacher": directories["Qwen2.5-14B"] if name == "distilled" else None,
            "gpus": GPUS,
        }
    trainings["alone"] = {**trainings["distilled"], "teacher": None}
    trainings["another's words"] = {**trainings["distilled"], "teacher": directories["Llama-3.1-8B"]}
    trainings["no directory"] = {**trainings["plain"], "model": str(root)}
    padded = str(bridge_directory("Qwen2.5-1.5B", root / "padded", vocabulary_multiple=1000))
    trainings["padded"] = {**trainings["plain"], "model": padded}
    return run("bridge_configuration_side.py", {"trainings": trainings, "scratch": str(root / "scratch")}, root)


def run(script: str, job: dict[str, Any], root: Path) -> dict[str, Any]:
    """Let Bridge's Python do a job; its answer."""
    (root / "job.json").write_text(json.dumps(job))
    environment = bridge_environment(root)
    environment["PYTHONPATH"] += f":{ROOT / 'tests'}"
    process = subprocess.run(
        [bridge_python(), str(HERE / script), str(root / "job.json"), str(root / "answer.json")],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    found: dict[str, Any] = json.loads((root / "answer.json").read_text())
    return found


def expected(option: str, key: str, engine: MegatronBridgeEngine) -> Any:
    """What Bridge must be given for an option; the option itself where nothing is said here."""
    precision, profile, rate = engine.precision, engine.profile, engine.learning_rate
    dtype = "torch.float32" if precision.type == "fp32" else "torch.bfloat16"
    local = engine.layer_spec == "local"
    said: dict[str, Any] = {
        "optimizer.min_lr": rate * engine.min_learning_rate_ratio,
        "scheduler.lr_warmup_init": rate / (engine.warmup_steps + 1) if engine.warmup_steps else 0,
        "model.fp8_recipe": RECIPE_NAMES.get(precision.type),
        "optimizer.fp8_recipe": RECIPE_NAMES.get(precision.type),
        "model.params_dtype": dtype,
        "optimizer.params_dtype": dtype,
        "model.recompute_granularity": None if engine.recompute.type == "none" else engine.recompute.type,
        "model.transformer_layer_spec": "local_layer_spec" if local else "transformer_engine_layer_spec",
        "model.transformer_impl": "local" if local else "transformer_engine",
        "ddp.overlap_param_gather": engine.overlap_parameters,
        "optimizer.overlap_param_gather": engine.overlap_parameters,
        "train.eval_interval": engine.validate_every or engine.steps,
        "model.overlap_p2p_comm": engine.overlap_pipeline,
        "model.expert_tensor_parallel_size": engine.parallelism.expert_shards,
    }
    if engine.distillation is not None:
        said["model.kd_config.skip_lm_loss"] = not engine.distillation.next_token_loss
    if profile is not None:
        nsys = profile.type == "nsys"
        said |= {
            "profiling.use_nsys_profiler": nsys,
            "profiling.use_pytorch_profiler": not nsys,
            "profiling.profile_step_start": profile.first_step + (0 if nsys else 1),
            "profiling.profile_step_end": profile.last_step + (1 if nsys else 2),
        }
    if option.startswith("fusions.") and local:
        return bool(options_of(engine)[option])
    return said[key] if key in said else options_of(engine)[option]


def mismatches(engine: MegatronBridgeEngine, keys: dict[str, Any]) -> list[str]:
    """Every option whose value is not where the table says."""
    wrong = []
    options = options_of(engine)
    for option, value in options.items():
        for key in BRIDGE_KEYS.get(option, ()):
            left_to_bridge = option.startswith("fusions.") and value is None and engine.layer_spec == "te"
            without_fp8 = option == "precision.type" and key.endswith("fp8_recipe") and "fp8" not in str(value)
            if key.startswith("recipes.") or left_to_bridge or without_fp8:
                continue
            want = expected(option, key, engine)
            if key not in keys or keys[key] != want:
                wrong.append(f"{option}: {key} is {keys.get(key)!r}, not {want!r}")
    return wrong


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipes_twin_is_what_bridge_is_given(name: str, bridge: dict[str, Any]) -> None:
    engine, _ = twin(name)
    keys = bridge["trainings"][name]["keys"]
    assert mismatches(engine, keys) == []
    config, _ = SHAPES[SHIPPED[name]]
    assert keys["model.num_layers"] == config["num_hidden_layers"]
    assert keys["model.vocab_size"] == config["vocab_size"]
    assert keys["model.share_embeddings_and_output_weights"] == config["tie_word_embeddings"]
    assert keys["model.calculate_per_token_loss"]
    assert not keys["ddp.average_in_collective"]
    assert (keys["ddp.check_for_nan_in_grad"], keys["rerun_state_machine.check_for_nan_in_loss"]) == (False, False)
    assert keys["rng.seed"] == 7


@pytest.mark.parametrize("name", BRIDGE_VARIANTS)
def test_every_option_is_found_where_the_table_says(name: str, bridge: dict[str, Any]) -> None:
    assert mismatches(engine_of(name), bridge["trainings"][name]["keys"]) == []


def test_the_variants_change_every_option() -> None:
    plain = options_of(engine_of("plain"))
    changed = {
        option
        for name in BRIDGE_VARIANTS
        for option, value in options_of(engine_of(name)).items()
        if value != plain.get(option)
    }
    ours = {option for option, keys in BRIDGE_KEYS.items() if keys[0].startswith("recipes.")}
    assert set(BRIDGE_KEYS) - ours - {"steps", "batch_size", "micro_batch_size"} <= changed


def test_a_changed_option_changes_bridges_key(bridge: dict[str, Any]) -> None:
    """So that no key only happens to hold the value that is asked for."""
    keys = {name: bridge["trainings"][name]["keys"] for name in BRIDGE_VARIANTS}
    given = {name: options_of(engine_of(name)) for name in BRIDGE_VARIANTS}
    for option, named in BRIDGE_KEYS.items():
        values = {json.dumps(given[name][option]) for name in BRIDGE_VARIANTS if option in given[name]}
        for key in named:
            if len(values) > 1 and not key.startswith("recipes."):
                found = {json.dumps(keys[name].get(key)) for name in BRIDGE_VARIANTS if option in given[name]}
                assert len(found) > 1, (option, key)


def test_buckets_are_the_same_for_any_number_of_copies(bridge: dict[str, Any]) -> None:
    """The distributed optimizer's state is saved by them. One recipe's model has one copy, the others' several."""
    found = [training["keys"] for training in bridge["trainings"].values() if "keys" in training]
    assert {keys["ddp.bucket_size"] for keys in found} == {BUCKET}


def test_the_teachers_logits(bridge: dict[str, Any]) -> None:
    keys = bridge["trainings"]["distilled"]["keys"]
    assert (keys["model"], keys["model.teacher"]) == ("DistillationProvider", "GPTModelProvider")
    assert (keys["model.num_layers"], keys["model.teacher.num_layers"]) == (28, 48)
    assert keys["model.teacher.transformer_layer_spec"] == keys["model.transformer_layer_spec"]
    assert bridge["trainings"]["distilled"]["hooks"] == 1  # which loads its weights


def test_what_does_not_go_together_is_refused(bridge: dict[str, Any]) -> None:
    refused = {name: found["refused"] for name, found in bridge["trainings"].items() if "refused" in found}
    assert refused.keys() == {"alone", "another's words", "no directory"}
    assert refused["alone"].startswith("engine.distillation, inputs.teacher: one is given without the other")
    assert "vocab_size: the teacher has 128256 and the student 152064" in refused["another's words"]
    assert "no iter_*/run_config.yaml, so no directory of Megatron-Bridge" in refused["no directory"]


def test_fusions_that_are_left_out_are_bridges_own_for_the_family(bridge: dict[str, Any]) -> None:
    fusions = ("apply_rope_fusion", "bias_activation_fusion", "bias_dropout_fusion", "persist_layer_norm")
    for name, own in (("family's own kernels", True), ("plain", False)):
        keys = bridge["trainings"][name]["keys"]
        assert [keys[f"model.{fusion}"] for fusion in fusions] == [own] * 4


def test_a_padded_checkpoint_keeps_its_rows(bridge: dict[str, Any]) -> None:
    keys = bridge["trainings"]["padded"]["keys"]
    assert (keys["model.vocab_size"], keys["model.should_pad_vocab"]) == (152_000, False)


def test_the_learning_rate_of_each_step_is_nemos(bridge: dict[str, Any]) -> None:
    """NeMo's CosineAnnealing: a warm-up that ends at the peak after its steps, and begins above 0."""
    from math import cos, pi

    engine = engine_of("optimizer")
    peak, floor, warm = engine.learning_rate, engine.learning_rate * 0.25, engine.warmup_steps
    for step, rate in enumerate(bridge["trainings"]["optimizer"]["rates"]):
        part = 0.5 * (1 + cos(pi * (step - warm) / (engine.steps - warm)))
        want = peak * (step + 1) / (warm + 1) if step <= warm else floor + (peak - floor) * part
        assert rate == pytest.approx(want, rel=1e-12)


def test_the_profilers_record_the_steps_that_are_asked_for(bridge: dict[str, Any]) -> None:
    for name in ("rhythm", "traced"):
        assert bridge["trainings"][name]["recorded"] == [2, 3, 4, 5]
    assert bridge["trainings"]["traced to the end"]["recorded"] == [48]


IN_FP8 = [name for name in VARIANTS if "fp8" in name] + ["distill-qwen3-8b-2n8g-fp8"]


@pytest.fixture(scope="module")
def transformer_engine(bridge: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What megatron-core gives Transformer Engine, for the settings that Bridge made."""
    job = {name: bridge["trainings"][name]["fp8"] for name in IN_FP8}
    return run("fp8_side.py", job, tmp_path_factory.mktemp("fp8"))


@pytest.mark.parametrize("name", IN_FP8)
def test_fp8_reaches_transformer_engine(name: str, bridge: dict[str, Any], transformer_engine: dict[str, Any]) -> None:
    engine = engine_of(name) if name in VARIANTS else twin(name)[0]
    precision = engine.precision.model_dump()
    assert transformer_engine_mismatches(precision, transformer_engine[name]) == []
    keys = bridge["trainings"][name]["keys"]
    reused = engine.precision.type == "mxfp8" and precision["fp8_parameters"]
    assert keys["ddp.reuse_grad_buf_for_mxfp8_param_ag"] == reused
    assert keys["optimizer.reuse_grad_buf_for_mxfp8_param_ag"] == reused
