"""The options of the engines on Megatron-core: what is refused, and by which words; and which versions go together."""

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from reasonforge.config import key_config, validate
from reasonforge.document import Document
from reasonforge.errors import RequestError
from recipes.engines.megatron.compatibility import (
    CONTAINERS,
    Versions,
    check_image,
    check_installed,
    container_tag,
    installed,
)
from recipes.engines.megatron.options import MegatronEngine
from recipes.engines.megatron_bridge.configuration import BRIDGE_KEYS
from recipes.engines.megatron_bridge.options import MegatronBridgeEngine
from recipes.engines.nemo.configuration import NEMO_KEYS
from recipes.engines.nemo.options import NeMoEngine

ROOT = Path(__file__).parents[2]
TENSOR = {"tensor": 2, "sequence_parallel": True}


KEYS = {NeMoEngine: NEMO_KEYS, MegatronBridgeEngine: BRIDGE_KEYS}
ENGINES = pytest.mark.parametrize("cls", KEYS)


def engine(cls: type[MegatronEngine] = NeMoEngine, **options: Any) -> MegatronEngine:
    return validate(cls, Document("r.yaml", {"steps": 100, **options}, {}))


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every option by its path; of a union, those of all its types."""
    for name, field in model.model_fields.items():
        inner = list(models(field.annotation))
        for member in inner:
            yield from leaves(member, f"{prefix}{name}.")
        if not inner:
            yield f"{prefix}{name}"


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    if get_origin(annotation) in (Union, UnionType, Annotated):
        for part in get_args(annotation):
            yield from models(part)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation


@ENGINES
def test_the_table_of_keys_has_every_option_and_no_other(cls: type[MegatronEngine]) -> None:
    assert set(KEYS[cls]) == set(leaves(cls)) - {"type"}


@pytest.mark.parametrize(
    ("option", "module"),
    [
        (option, module)
        for keys in KEYS.values()
        for option, modules in keys.items()
        for module in modules
        if module.startswith("recipes.")
    ],
)
def test_what_is_not_in_the_frameworks_configuration_is_read_by_the_module_that_the_table_names(
    option: str, module: str
) -> None:
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).rpartition(".")[2] == "engine"
    }
    assert option in read


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "micro batch": ({"batch_size": 16, "micro_batch_size": 3}, "micro_batch_size = 3 does not divide batch_size = 16"),
    "packed micro batch": (
        {"packed": True, "sequence_length": 64, "micro_batch_size": 2},
        "packed is true, and micro_batch_size = 2, but packed sequences are computed one at a time; set micro_batch",
    ),
    "packed length": ({"packed": True}, "packed is true, but sequence_length is null; give"),
    "packed context": (
        {"packed": True, "sequence_length": 64, "parallelism": {"context": 2}},
        "packed is true, but parallelism.context = 2, and each packed row would have to be a multiple of 4 tokens",
    ),
    "packed attention": (
        {"packed": True, "sequence_length": 64, "attention_backend": "local"},
        "packed is true, but attention_backend is local",
    ),
    "packed layers": (
        {"packed": True, "sequence_length": 64, "layer_spec": "local", "overlap": {"gradients": False}},
        "packed is true, but layer_spec is local",
    ),
    "length by context": (
        {"sequence_length": 70, "parallelism": {"context": 2}},
        "sequence_length = 70, but parallelism and precision need a multiple of 4; take 68 or 72",
    ),
    "length in FP8": (
        {"sequence_length": 40, "precision": {"type": "fp8-current"}, "parallelism": TENSOR},
        "sequence_length = 40, but parallelism and precision need a multiple of 32; take 32 or 64",
    ),
    "warm-up": ({"warmup_steps": 100}, "warmup_steps = 100 is not less than steps = 100"),
    "validation": ({"validate_every": 200}, "validate_every = 200 is more than steps = 100"),
    "virtual pipeline": (
        {"parallelism": {"virtual_pipeline": 2}},
        "parallelism.virtual_pipeline = 2, but parallelism.pipeline is 1, and only stages can be interleaved; leave",
    ),
    "sequence parallel": (
        {"parallelism": {"sequence_parallel": True}},
        "parallelism.sequence_parallel is true, but parallelism.tensor is 1",
    ),
    "local context": (
        {"layer_spec": "local", "parallelism": {"context": 2}},
        "parallelism.context is 2, but layer_spec is local",
    ),
    "local sequence parallel": (
        {"layer_spec": "local", "parallelism": TENSOR},
        "parallelism.sequence_parallel is True, but layer_spec is local",
    ),
    "local attention's context": (
        {"attention_backend": "local", "parallelism": {"context": 2}},
        "attention_backend is local, but parallelism.context = 2",
    ),
    "attention of local layers": (
        {"layer_spec": "local", "attention_backend": "flash"},
        "attention_backend is flash, but layer_spec is local",
    ),
    "kernels of local layers": (
        {"layer_spec": "local", "fusions": {"rope": True}},
        "fusions.rope is true, but layer_spec is local",
    ),
    "FP8 in local layers": (
        {"layer_spec": "local", "precision": {"type": "mxfp8"}},
        "precision.type is mxfp8, but layer_spec is local",
    ),
    "FP8 weights": (
        {"precision": {"type": "fp8-delayed"}, "distributed_optimizer": False},
        "precision.fp8_parameters is true, but distributed_optimizer is false",
    ),
    "FP8 attention": (
        {"precision": {"type": "fp8-current", "attention": True}, "attention_backend": "flash"},
        "precision.attention is true, but attention_backend is flash",
    ),
    "FP8 multi-head attention": (
        {"precision": {"type": "fp8-delayed", "multi_head_attention": True}},
        "multi_head_attention is true, but attention is false",
    ),
    "recomputed norms": (
        {"precision": {"type": "fp8-delayed"}, "recompute": {"type": "selective", "modules": ["layernorm"]}},
        "recompute.modules has layernorm, but precision.type is fp8-delayed",
    ),
    "overlapped parameters": (
        {"overlap": {"gradients": False, "parameters": True}},
        "overlap.parameters is true, but overlap.gradients is false",
    ),
    "gathered parameters": (
        {"overlap": {"parameters": True}, "distributed_optimizer": False},
        "overlap.parameters is true, but distributed_optimizer is false",
    ),
    "overlapped tensors": (
        {"overlap": {"tensor_parallel": True}, "parallelism": {"tensor": 2}},
        "overlap.tensor_parallel is true, but parallelism.sequence_parallel is false",
    ),
    "overlapped tensors of any length": (
        {"overlap": {"tensor_parallel": True}, "parallelism": TENSOR},
        "overlap.tensor_parallel is true, but sequence_length is null",
    ),
    "overlapped stages": (
        {"overlap": {"pipeline": True}, "parallelism": {"pipeline": 2}},
        "overlap.pipeline is true, but parallelism.virtual_pipeline is null",
    ),
    "chunks between two": (
        {"overlap": {"pipeline": False}, "parallelism": {"pipeline": 2, "virtual_pipeline": 2}},
        "overlap.pipeline is false, but parallelism.virtual_pipeline = 2 with pipeline 2",
    ),
    "distilled chunks": (
        {"distillation": {}, "parallelism": {"pipeline": 2, "virtual_pipeline": 2}},
        "distillation is given, and parallelism.virtual_pipeline = 2, but ModelOpt's",
    ),
    "distilled adapters": ({"distillation": {}, "lora": {}}, "distillation and lora are both given"),
    "unused scale": ({"distillation": {"scale": 2.0}}, "scale = 2, but next_token_loss is false"),
    "profiled steps": (
        {"profile": {"type": "nsys", "first_step": 5, "last_step": 100}},
        "profile.first_step = 5 and profile.last_step = 100 are no steps of 0 to 99",
    ),
    "a lost option of Transformer Engine": (
        {"precision": {"type": "fp8-delayed", "weight_gradients": False}},
        "unknown key 'weight_gradients'",
    ),
    "a floor at the peak": ({"min_learning_rate_ratio": 1.0}, "less than 1"),
}
"""What the frameworks, megatron-core or Transformer Engine would refuse on a GPU, or drop without a word."""

REFUSED_BY: list[tuple[type[MegatronEngine], dict[str, Any], str]] = [
    (
        NeMoEngine,
        {"layer_spec": "local", "lora": {}},
        "lora is given, but layer_spec is local, and NeMo's adapters ask",
    ),
    (
        MegatronBridgeEngine,
        {"distillation": {}, "parallelism": {"pipeline": 2}},
        "distillation is given, and parallelism.pipeline = 2, but sequence_length is null",
    ),
    (
        MegatronBridgeEngine,
        {"profile": {"type": "torch", "first_step": 5, "last_step": 99}},
        "profile.last_step = 99 is the last of 100 steps, but Megatron-Bridge writes the trace at the step after it; "
        "take 98 or less, or profile.type nsys",
    ),
]
"""What only one of them refuses: the other takes it."""


@ENGINES
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_a_line_that_names_the_keys(name: str, cls: type[MegatronEngine]) -> None:
    options, said = REFUSED[name]
    with pytest.raises(RequestError) as caught:
        engine(cls, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("cls", "options", "said"), REFUSED_BY)
def test_what_one_engine_lacks_it_refuses_by_name(
    cls: type[MegatronEngine], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError) as caught:
        engine(cls, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    (other,) = KEYS.keys() - {cls}
    assert options.keys() <= engine(other, **options).model_dump(exclude_defaults=True).keys()


def test_the_key_holds_what_decides_the_weights_and_no_layout() -> None:
    plain, other = engine(), engine(
        parallelism=TENSOR, micro_batch_size=2, recompute={"type": "full"}, save_every=7, log_to=["wandb"],
        attention_backend="fused", overlap={"gradients": False}, fully_reshardable=True,
    )  # fmt: skip
    assert key_config(plain) == key_config(other)
    for change in ({"precision": {"type": "fp8-current"}}, {"packed": True, "sequence_length": 64}, {"tokens": 9}):
        assert key_config(engine(**change)) != key_config(plain)


def test_the_resolved_form_is_taken_again() -> None:
    for options in ({}, {"distributed_optimizer": False}, {"precision": {"type": "mxfp8"}, "lora": {"rank": 8}}):
        for cls in KEYS:
            found = engine(cls, **options)
            assert cls.model_validate_json(found.model_dump_json()) == found


def test_containers_by_their_names() -> None:
    names = ["nvcr.io/nvidia/nemo:25.11", "/images/nvidia+nemo+25.11.sqsh", "/x/nemo-25.11.sif", "nemo:25.11.01"]
    assert {container_tag(name) for name in names} == {"25.11"}
    assert container_tag("/images/reasonforge-nemo.sqsh") is None
    assert container_tag("pytorch:25.11") is None


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("25.09", "megatron-bridge is 0.1.0rc3, but this engine is for 0.3 and later, below 0.4"),
        ("25.11", "megatron-bridge is 0.2.0"),
        ("26.02", None),
        ("26.04", "megatron-bridge is 0.4.0"),
        ("27.01", None),
    ],
)
def test_a_container_with_another_bridge_is_refused(tag: str, said: str | None) -> None:
    problem = check_image(f"/images/nvidia+nemo+{tag}.sqsh", engine(MegatronBridgeEngine))
    assert (problem is None) == (said is None)
    if problem is not None:
        assert str(said) in str(problem)
        assert str(problem).endswith("tags that fit: 26.02")


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("25.09", None),
        ("25.11", None),
        ("26.02", "nemo_toolkit 2.7.0 cannot train with megatron-core 0.16.0"),
        ("26.04", "there is no nemo_toolkit with language models in it"),
        ("27.01", None),  # a tag that nobody knows
    ],
)
def test_a_container_whose_versions_do_not_fit_is_refused(tag: str, said: str | None) -> None:
    problem = check_image(f"nvcr.io/nvidia/nemo:{tag}", engine())
    assert (problem is None) == (said is None)
    if problem is not None:
        assert str(said) in str(problem)
        assert str(problem).endswith("tags that fit: 25.09, 25.11")


def test_the_environment_is_checked_by_its_own_versions() -> None:
    fits = Versions("2.7.3", "0.15.3", "2.9.0")
    assert check_installed(engine(), fits) == fits
    assert check_installed(engine(layer_spec="local", distributed_optimizer=False), Versions("2.7.3", "0.15.3", None))
    block = engine(precision={"type": "fp8-blockwise"})
    local = {"layer_spec": "local"}
    bridge = Versions(None, "0.16.1", "2.9.0", "0.3.1")
    assert check_installed(engine(MegatronBridgeEngine), bridge) == bridge
    for found, options, said in (
        (Versions("2.7.3", "0.16.1", "2.9"), engine(), "no_weight_decay_cond"),
        (Versions("3.0.0", "0.15.3", "2.9"), engine(), "nemo_toolkit is 3.0.0"),
        (Versions("2.7.3", "0.15.3", None), engine(), "layer_spec is te, but there is no Transformer Engine"),
        (Versions("2.7.3", "0.15.3", None), engine(**local), "true, but there is no Transformer Engine.*: false"),
        (Versions("2.7.3", "0.15.3", "2.2"), block, "fp8-blockwise needs Transformer Engine 2.3"),
        (installed(), engine(), "nemo_toolkit"),  # reasonforge's own environment
        (installed(), engine(MegatronBridgeEngine), "engine megatron_bridge: there is no megatron-bridge"),
        (replace(bridge, core="0.17.0"), engine(MegatronBridgeEngine), "0.3.1 cannot train with megatron-core 0.17.0"),
        (replace(bridge, transformer_engine=None), engine(MegatronBridgeEngine, **local), "imports Transformer Engine"),
        (replace(bridge, transformer_engine=None), engine(MegatronBridgeEngine), "layer_spec is te, but there is no"),
    ):
        with pytest.raises(RequestError, match=said):
            check_installed(options, found)


def test_every_container_of_the_table_is_told_apart() -> None:
    assert {container_tag(f"nemo:{tag}") for tag in CONTAINERS} == set(CONTAINERS)
