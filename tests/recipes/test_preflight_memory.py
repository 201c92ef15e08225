"""The memory estimate against published figures, its parts against numbers worked out by hand, and its directions."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks import memory as published
from benchmarks.memory import H100, LLAMA_8B, LLAMA_70B, QWEN3_8B, QWEN3_30B, QWEN_7B, Figure, tp
from checkpoints_conversion.spec import ModelSpec
from recipes.preflight.memory import Training, conversion_needs, layers_in_flight, stage_memory, training_memory
from recipes.preflight.parallelism import Batch, Parallelism, Precision
from recipes.preflight.serving import cache_per_token, serving_memory
from recipes.preflight.shape import held_by_stage, parameters
from recipes.preflight.table import GIB, UNCERTAINTY

STEP = Batch(sequence_length=4096, global_=64)


def name(figure: Figure) -> str:
    return figure.what


@pytest.mark.parametrize("figure", published.counts(), ids=name)
def test_parameters_are_counted_exactly(figure: Figure) -> None:
    assert figure.ours == figure.published


@pytest.mark.parametrize("model", [LLAMA_8B, QWEN_7B, QWEN3_8B, QWEN3_30B], ids=lambda model: model.model_type)
def test_transformers_builds_as_many_parameters(model: ModelSpec) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "num_hidden_layers": 2,
        "hidden_size": model.hidden,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.groups,
        "head_dim": model.head_dim,
        "intermediate_size": model.ffn,
        "vocab_size": model.vocabulary,
        "num_experts": model.experts,
        "num_experts_per_tok": model.experts_per_token,
        "moe_intermediate_size": model.expert_ffn,
    }
    dense = {key: size for key, size in sizes.items() if size}
    for tied in (False, True):
        with torch.device("meta"):
            built = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(model.model_type, tie_word_embeddings=tied, **dense)
            )
        assert parameters(replace(model, layers=2, tied=tied)) == built.num_parameters()


@pytest.mark.parametrize("figure", published.trainings(), ids=name)
def test_peaks_of_published_trainings(figure: Figure) -> None:
    """Published peaks are of whole GiB at best, and hold what no formula sees: evaluation, caches, communication."""
    assert 1 / (1 + UNCERTAINTY) < figure.ratio < 1.15


def test_published_trainings_of_unknown_length_lie_between_two_lengths() -> None:
    bounds = zip(published.short_answers(128), published.short_answers(1024), strict=True)
    assert all(shorter.ours < shorter.published < longer.ours for shorter, longer in bounds)


@pytest.mark.parametrize("figure", published.known_to_run(), ids=name)
def test_what_is_known_to_run_fits(figure: Figure) -> None:
    """NVIDIA's settings use their GPUs well: more than half, and they fit."""
    assert 0.5 < figure.ratio < 1


@pytest.mark.parametrize("figure", published.servers(), ids=name)
def test_published_servers(figure: Figure) -> None:
    assert figure.ratio == pytest.approx(1, abs=0.02)


def test_a_table_adds_up() -> None:
    """Llama-3-8B in bf16 on 8 GPUs: 2 + 4 + 12/8 bytes for each parameter, and 128256 needs no padding."""
    table = training_memory(LLAMA_8B, Parallelism(), STEP, 8, "bf16", Training(), H100)
    count = 8_030_261_248
    assert table.bytes_of("weights") == 2 * count
    assert table.bytes_of("gradients") == 4 * count
    assert table.bytes_of("optimizer") == 12 * count / 8
    # A token of a layer: norms 4h·2, query, key, value and output 2·(2q + 2k), statistics 4·heads, SwiGLU 6f.
    token = 8 * 4096 + 2 * (2 * 4096 + 2 * 1024) + 4 * 32 + 6 * 14336
    assert table.bytes_of("activations") == 4096 * 32 * token
    assert table.bytes_of("logits and loss") == 4096 * (6 * 128256 + 4 * 4096)
    assert table.total + table.headroom == table.capacity == H100
    *lines, total, headroom = table.text_rows()
    assert lines[0] == ("weights", "15.0", "19 %")
    assert total[:2] == ("total", f"{table.total / GIB:.1f}")
    assert headroom[0] == "headroom"
    assert "FP8 copies of weights" not in [row[0] for row in lines]


def test_korthikanti_for_unfused_attention() -> None:
    """Without fused attention each head keeps 5·s² bytes (5as²b of table 2), unless the core is recomputed."""

    def kept(**choices: Any) -> int:
        training = Training(**choices)
        return training_memory(LLAMA_8B, Parallelism(), STEP, 8, "bf16", training, H100).bytes_of("activations")

    scores = 5 * 32 * 4096**2 * 32
    assert kept(recompute="none", fused_attention=False) - kept(recompute="none") == scores
    assert kept(recompute="selective", fused_attention=False) == kept(recompute="selective")
    assert kept(recompute="full") == 2 * 4096 * 4096 * 32


@pytest.mark.parametrize(
    ("layout", "rounds", "stage", "layers"),
    [
        (Parallelism(), 8, 0, 80),
        (Parallelism(pipeline=4), 8, 0, 80),
        (Parallelism(pipeline=4), 8, 3, 20),
        (Parallelism(pipeline=4), 2, 0, 40),
        (Parallelism(pipeline=4, virtual_pipeline=5), 8, 0, 23 * 4),
        (Parallelism(pipeline=4, virtual_pipeline=5), 8, 3, 17 * 4),
        (Parallelism(pipeline=4, virtual_pipeline=5), 4, 0, 20 * 4),
    ],
)
def test_layers_in_flight(layout: Parallelism, rounds: int, stage: int, layers: int) -> None:
    """On the first stage the interleaved schedule keeps 1 + (p - 1)/(p·m) times all layers: 1 + 3/20 of 80 is 92."""
    batch = Batch(sequence_length=4096, global_=rounds)
    assert layers_in_flight(LLAMA_70B, layout, batch, layout.pipeline, stage) == layers


def test_fp8_weights_and_lora() -> None:
    def table(precision: Precision, **choices: Any) -> Any:
        return training_memory(LLAMA_8B, Parallelism(), STEP, 8, precision, Training(**choices), H100)

    linear = held_by_stage(LLAMA_8B, Parallelism(), 0).linear
    assert table("fp8-current").bytes_of("FP8 copies of weights") == 2 * linear
    assert table("fp8-current", fp8_cache=False).bytes_of("FP8 copies of weights") == 0
    bf16 = table("bf16").bytes_of("weights")
    assert table("fp8-current", fp8_weights=True).bytes_of("weights") == bf16
    assert table("fp8-current", fp8_weights=True, fp8_cache=False).bytes_of("weights") == bf16 - linear
    assert table("mxfp8", fp8_weights=True, fp8_cache=False).bytes_of("weights") == bf16
    assert table("fp8-current").bytes_of("activations") < table("bf16").bytes_of("activations")
    adapted = table("bf16", lora_rank=16)
    adapters = 32 * 16 * (2 * 4096 + 2 * 4096 + 2 * 1024 + 2 * 4096 + 3 * 14336)
    assert adapted.bytes_of("adapters") == 2 * adapters
    assert adapted.bytes_of("gradients") == 4 * adapters
    assert adapted.bytes_of("optimizer") == 12 * adapters / 8
    assert training_memory(LLAMA_8B, Parallelism(), STEP, 8, "fp32", Training(), H100).bytes_of("optimizer") == (
        8 * 8_030_261_248 / 8
    )


def test_experts_are_shared_out_over_their_own_grid() -> None:
    one = held_by_stage(QWEN3_30B, Parallelism(), 0).experts
    assert held_by_stage(QWEN3_30B, Parallelism(tensor=2, expert=8, expert_tensor=1), 0).experts == one / 8
    assert held_by_stage(QWEN3_30B, Parallelism(tensor=2, expert=4), 0).experts == one / 8


def test_the_fullest_stage_is_shown() -> None:
    layout = Parallelism(tensor=4, pipeline=4, sequence_parallel=True)
    table = training_memory(LLAMA_70B, layout, STEP, 64, "bf16", Training(), H100)
    stages = [stage_memory(LLAMA_70B, layout, STEP, 64, "bf16", Training(), H100, stage) for stage in range(4)]
    assert table == max(stages, key=lambda one: one.total)
    assert table.where == "stage 1 of 4"


def test_tight_is_what_the_estimate_cannot_promise() -> None:
    table = training_memory(LLAMA_8B, Parallelism(), STEP, 8, "bf16", Training(), H100)
    assert table.fits
    assert replace(table, capacity=table.total).fits
    assert replace(table, capacity=round(table.total * 1.1)).tight
    assert not replace(table, capacity=round(table.total * 1.3)).tight
    assert not replace(table, capacity=table.total - 1).fits


def test_serving() -> None:
    """Llama-3-8B keeps 128 KiB of keys and values for each token; a share of 0.9 of 80 GiB leaves about 54 GiB."""
    one = serving_memory(LLAMA_8B, H100)
    assert one.cache_per_token == cache_per_token(LLAMA_8B) == 2 * 32 * 8 * 128 * 2 == 131072
    assert one.table.total <= one.table.capacity < one.table.total + 16 * one.cache_per_token
    assert one.tokens % 16 == 0
    assert one.longest == min(one.tokens, LLAMA_8B.positions)
    assert cache_per_token(LLAMA_8B, 4) == 131072 / 4
    assert cache_per_token(LLAMA_8B, 16) == 131072 / 8, "a GPU holds at least one KV head"
    assert cache_per_token(LLAMA_8B, cache_bytes=1) == 131072 / 2
    assert serving_memory(LLAMA_70B, H100).tokens == 0
    assert serving_memory(LLAMA_70B, H100).longest == 0
    assert serving_memory(LLAMA_70B, H100, tensor=4).tokens > 100_000


def test_conversion() -> None:
    """152,064 is a multiple of 128 and of 8; 151,936 of 128; a vocabulary of 1,000 is padded to 1,024."""
    needs = conversion_needs(QWEN_7B)
    assert (needs.cpu, needs.result, needs.with_source) == (64 * 2**20, 2 * 7_615_616_512, 4 * 7_615_616_512)
    small = replace(QWEN_7B, vocabulary=1000)
    assert conversion_needs(small).result - 2 * parameters(small) == 2 * 24 * 3584 * 2


SIZES = st.sampled_from([1, 2, 4, 8])
MODELS = st.sampled_from([LLAMA_8B, LLAMA_70B, QWEN_7B, QWEN3_30B])
PRECISIONS: list[Precision] = ["bf16", "fp32", "fp8-current", "mxfp8"]


@settings(max_examples=200, deadline=None)
@given(model=MODELS, tensor=SIZES, pipeline=SIZES, context=SIZES, precision=st.sampled_from(PRECISIONS))
def test_more_sharing_never_takes_more(
    model: ModelSpec, tensor: int, pipeline: int, context: int, precision: Precision
) -> None:
    def table(**more: int) -> Any:
        sizes = {"tensor": tensor, "pipeline": pipeline, "context": context} | more
        layout = tp(**sizes) if sizes["tensor"] > 1 else Parallelism(**sizes)
        return stage_memory(model, layout, STEP, 512, precision, Training(), H100, 0)

    padding = 128 * model.hidden * 2 * 4  # of two tables, by half a multiple of 128 rows for each GPU
    more = table(tensor=2 * tensor)
    assert more.bytes_of("weights") <= table().bytes_of("weights") + padding
    assert table(context=2 * context).bytes_of("activations") <= table().bytes_of("activations")
    assert table(pipeline=2 * pipeline).bytes_of("weights") <= table().bytes_of("weights")


@settings(max_examples=100, deadline=None)
@given(model=MODELS, tensor=SIZES, pipeline=SIZES, length=st.integers(1, 2**17), micro=st.integers(1, 8))
def test_recomputation_takes_less_and_a_longer_sequence_more(
    model: ModelSpec, tensor: int, pipeline: int, length: int, micro: int
) -> None:
    assume(length * micro < 2**20)

    def total(recompute: Any, length: int) -> int:
        batch = Batch(sequence_length=length, micro=micro, global_=512)
        layout = Parallelism(tensor=tensor, pipeline=pipeline)
        choices = Training(recompute=recompute, fused_attention=False)
        return training_memory(model, layout, batch, 64, "bf16", choices, H100).total

    assert total("selective", length) <= total("none", length)
    assert total("none", length) < total("none", length + 8)
    assert total("full", length) < total("full", length + 8)
