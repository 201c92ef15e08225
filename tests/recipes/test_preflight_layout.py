"""Each rule's message, what megatron-core cannot be asked on a CPU (FP8), and suggestions."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.memory import H100, LLAMA_70B, QWEN3_30B, QWEN_7B
from checkpoints_conversion.spec import ModelSpec
from reasonforge.errors import RequestError
from recipes.preflight.layout import BEYOND_CONSTRUCTION, Core, errors, problems
from recipes.preflight.memory import Training
from recipes.preflight.parallelism import Batch, Parallelism, Precision
from recipes.preflight.suggest import suggest

BATCH: dict[str, Any] = {"sequence_length": 4096, "global_": 64}


def rules(model: ModelSpec, precision: Precision = "bf16", gpus: int = 16, **sizes: Any) -> dict[str, str]:
    """Rule and line of all that is found."""
    how: dict[str, Any] = {"core": sizes.pop("core", "0.15"), "transformer_engine": sizes.pop("te", True)}
    batch = Batch(**{key: sizes.pop(key, BATCH.get(key)) for key in ("sequence_length", "global_")}, micro=1)
    found = problems(model, Parallelism(**sizes), batch, gpus, 8, precision, **how)
    return {problem.rule: str(problem) for problem in found}


def test_a_sound_layout_has_no_problem() -> None:
    assert rules(LLAMA_70B, tensor=2, pipeline=4, sequence_parallel=True) == {}
    assert not errors(problems(QWEN3_30B, Parallelism(expert=8), Batch(**BATCH), 16, 8, "bf16"))


def test_all_that_is_wrong_is_said_at_once_errors_first() -> None:
    found = rules(QWEN_7B, tensor=16, pipeline=3, virtual_pipeline=4, context=3, expert=2, gpus=64, global_=10)
    assert list(found) == ["gpus", "expert_gpus", "heads", "groups", "layers", "experts_needed", "sequence_by_context",
                           "tensor_beyond_node", "vocabulary"]  # fmt: skip
    assert found["heads"] == (
        "parallelism.tensor, model.heads: found 16 for 28 attention heads; each GPU takes whole heads; "
        "take 1, 2, 4 or 7"
    )
    assert "take 48 or 96" not in found["gpus"]
    assert "16 × 3 × 3 = 144 on 64 GPUs" in found["gpus"]


def test_more_tensor_parallelism_than_kv_heads_needs_the_newer_core() -> None:
    model = replace(QWEN_7B, heads=32)
    found = rules(model, tensor=8)
    assert "megatron-core 0.15 gives each GPU whole KV heads" in found["groups"]
    assert "or, with megatron-core 0.16, a multiple of 4" in found["groups"]
    assert "groups" not in rules(model, tensor=8, core="0.16")


def test_a_problem_becomes_an_error_of_one_line() -> None:
    found = problems(QWEN_7B, Parallelism(tensor=8), Batch(**BATCH), 16, 8, "bf16")
    error = found[0].error("recipe.yaml:9")
    assert isinstance(error, RequestError)
    assert str(error).startswith("recipe.yaml:9: parallelism.tensor, model.heads: found 8")
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("precision", "length", "sizes", "expected"),
    [
        ("bf16", 4099, {}, set()),
        ("fp8-current", 4096, {}, set()),
        ("fp8-delayed", 4104, {}, {"fp8_tokens"}),
        ("mxfp8", 4112, {}, {"fp8_tokens"}),
        ("mxfp8", 4096 + 128, {"tensor": 4, "sequence_parallel": True}, set()),
        ("mxfp8", 4096 + 64, {"tensor": 4, "sequence_parallel": True}, {"fp8_tokens"}),
        ("fp8-blockwise", 4096 + 64, {}, {"fp8_blocks"}),
        ("fp8-blockwise", 4096 + 8, {}, {"fp8_tokens"}),
        ("fp8-current", 4096 + 32, {"context": 2}, set()),
        ("fp8-current", 4096 + 16, {"context": 2}, {"fp8_tokens"}),
    ],
)
def test_fp8_wants_whole_tiles_of_tokens(
    precision: Precision, length: int, sizes: dict[str, Any], expected: set[str]
) -> None:
    assert set(rules(LLAMA_70B, precision, sequence_length=length, **sizes)) - {"vocabulary"} == expected


def test_fp8_wants_whole_tiles_of_each_shard() -> None:
    narrow = replace(LLAMA_70B, ffn=28672 + 8)
    assert "28680 over 1 = 28680" in rules(narrow, "fp8-current")["fp8_dimensions"]
    assert "fp8_dimensions" not in rules(narrow, "bf16")
    assert "fp8_dimensions" in rules(replace(LLAMA_70B, ffn=28672 - 64), "mxfp8", tensor=4)
    assert "fp8_dimensions" not in rules(replace(LLAMA_70B, ffn=28672 - 64), "fp8-current", tensor=4)
    assert "fp8_dimensions" in rules(replace(QWEN3_30B, expert_ffn=776), "fp8-current")


def test_what_needs_transformer_engine() -> None:
    found = rules(LLAMA_70B, "fp8-current", tensor=2, context=2, sequence_parallel=True, te=False)
    assert set(found) == {"context_needs_te", "sequence_parallel_needs_te", "fp8_needs_te"}
    assert set(found) < set(BEYOND_CONSTRUCTION)


def test_more_experts_for_a_token_than_there_are() -> None:
    assert "experts_per_token" in rules(replace(QWEN3_30B, experts=4))


def test_warnings_and_notes_stop_nothing() -> None:
    found = problems(QWEN_7B, Parallelism(pipeline=4), Batch(sequence_length=262144, global_=4), 4, 2, "bf16")
    assert not errors(problems(QWEN_7B, Parallelism(), Batch(sequence_length=262144, global_=16), 16, 8, "bf16"))
    assert [problem.rule for problem in found if problem.severity == "warning"] == ["positions"]
    idle = problems(QWEN_7B, Parallelism(pipeline=4), Batch(sequence_length=4096, global_=2), 4, 2, "bf16")
    assert [(problem.rule, problem.severity) for problem in idle] == [("idle_stages", "warning")]


LAYOUTS = st.builds(
    Parallelism,
    tensor=st.sampled_from([1, 2, 3, 4, 8, 16]),
    pipeline=st.sampled_from([1, 2, 3, 4, 7]),
    virtual_pipeline=st.sampled_from([None, 2, 3]),
    context=st.sampled_from([1, 2, 3, 8]),
    expert=st.sampled_from([1, 2, 3, 8]),
    expert_tensor=st.sampled_from([None, 1, 2]),
    sequence_parallel=st.booleans(),
)
BATCHES = st.builds(
    Batch,
    sequence_length=st.sampled_from([2048, 4095, 8192, 32768, 131072]),
    micro=st.sampled_from([1, 2, 3]),
    global_=st.sampled_from([1, 30, 64, 256]),
)
PRECISIONS: list[Precision] = ["bf16", "fp8-current", "mxfp8"]
CORES: list[Core] = ["0.15", "0.16"]


@settings(max_examples=60, deadline=None)
@given(
    model=st.sampled_from([QWEN_7B, LLAMA_70B, QWEN3_30B]),
    parallelism=LAYOUTS,
    batch=BATCHES,
    gpus=st.sampled_from([1, 8, 16, 24, 64]),
    precision=st.sampled_from(PRECISIONS),
    core=st.sampled_from(CORES),
    te=st.booleans(),
)
def test_suggestions_have_no_error_and_fit(
    model: ModelSpec, parallelism: Parallelism, batch: Batch, gpus: int, precision: Precision, core: Core, te: bool
) -> None:
    how: dict[str, Any] = {"core": core, "transformer_engine": te}
    found = suggest(model, parallelism, batch, gpus, 8, precision, Training(), H100, **how)
    assert len(found) <= 3
    assert all(one.table.fits for one in found)
    for one in found:
        assert not errors(problems(model, one.parallelism, one.batch, gpus, 8, precision, **how))
    if precision != "bf16" and not te:
        assert not found


def test_what_works_is_its_own_nearest_layout() -> None:
    layout, batch = Parallelism(tensor=4, sequence_parallel=True), Batch(**BATCH)
    first, *_ = suggest(QWEN_7B, layout, batch, 16, 8, "bf16", Training(), H100)
    assert (first.parallelism, first.batch, first.changes) == (layout, batch, ())


def test_a_suggestion_names_its_changes() -> None:
    layout, batch = Parallelism(tensor=8, sequence_parallel=True), Batch(sequence_length=4096, global_=65)
    first, *_ = suggest(QWEN_7B, layout, batch, 16, 8, "bf16", Training(), H100)
    assert first.changes == ("parallelism.tensor: 8 → 4", "parallelism.context: 1 → 4"), "what is learned is kept"
    even = batch.model_copy(update={"sequence_length": 4095, "global_": 64})
    first, *_ = suggest(QWEN_7B, layout, even, 16, 8, "bf16", Training(), H100)
    assert first.changes == ("parallelism.tensor: 8 → 4", "batch.sequence_length: 4095 → 4096")


def test_full_recomputation_is_suggested_where_nothing_else_fits() -> None:
    batch = Batch(sequence_length=65536, global_=8)
    found = suggest(
        LLAMA_70B, Parallelism(tensor=8, sequence_parallel=True), batch, 16, 8, "bf16", Training(), 2 * H100
    )
    assert found
    assert all("training.recompute: selective → full" in one.changes for one in found)
    assert not suggest(LLAMA_70B, Parallelism(), Batch(**BATCH), 1, 8, "bf16", Training(), H100)
