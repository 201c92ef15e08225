"""HF → Megatron → HF keeps every bit, for each family, type and option; what is in between torch's own readers read."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from random_models import SIZES, write_random
from tiny_checkpoints import assert_same_weights, edit_json, make_model, to_huggingface, to_megatron, weights

from checkpoints_conversion.safetensors import read_header
from reasonforge.errors import RequestError
from reasonforge.files import read_json


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe"])
def test_every_family_and_type(family: str, dtype: str, tmp_path: Path) -> None:
    make_model(tmp_path / "hf", family, dtype=dtype)
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    to_huggingface(tmp_path / "megatron", tmp_path / "back")
    assert_same_weights(tmp_path / "hf", tmp_path / "back")


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama-rope-scaled", {}),
        ("llama", {"num_key_value_heads": 1}),
        ("llama", {"num_key_value_heads": 4}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen2", {"vocab_size": 128}),
        ("qwen2", {"vocab_size": 32, "hidden_size": 32}),
        ("qwen3_moe", {"tie_word_embeddings": True, "num_experts": 3}),
    ],
)
def test_every_option(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    make_model(tmp_path / "hf", family, **changes)
    for spelling in ("te", "local"):
        to_megatron(tmp_path / "hf", tmp_path / spelling, layer_spec=spelling)
        to_huggingface(tmp_path / spelling, tmp_path / f"back-{spelling}")
        assert_same_weights(tmp_path / "hf", tmp_path / f"back-{spelling}")


def test_many_shards_in_and_out(tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "qwen2", shards="20KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 3
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    to_huggingface(tmp_path / "megatron", tmp_path / "back", max_shard_bytes=30_000)
    assert_same_weights(tmp_path / "hf", tmp_path / "back")
    shards = sorted(path.name for path in (tmp_path / "back").glob("*.safetensors"))
    index = read_json(tmp_path / "back/model.safetensors.index.json")
    assert sorted(set(index["weight_map"].values())) == shards
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    for shard in shards:
        for name in read_header(tmp_path / "back" / shard).tensors:
            assert index["weight_map"][name] == shard
    assert index["metadata"]["total_size"] == sum(
        tensor.numel() * tensor.element_size() for tensor in weights(tmp_path / "back").values()
    )


@pytest.mark.parametrize("multiple", [1, 8, 128])
def test_padding_is_zeros_and_goes_away(multiple: int, tmp_path: Path) -> None:
    model = make_model(tmp_path / "hf", "qwen2")
    to_megatron(tmp_path / "hf", tmp_path / "megatron", vocabulary_multiple=multiple)
    padded = -(-100 // multiple) * multiple
    found = load_with_torch(tmp_path / "megatron/iter_0000001", "embedding.word_embeddings.weight", (padded, 32))
    assert torch.equal(found[:100], model.model.embed_tokens.weight)
    assert not found[100:].any()


def load_with_torch(directory: Path, key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """One tensor, read by torch.distributed.checkpoint."""
    state = {key: torch.empty(shape)}
    dcp.load(state, checkpoint_id=str(directory), no_dist=True)
    return state[key]


def test_the_layout_is_megatrons(tmp_path: Path) -> None:
    """Rows are where megatron-core has them: per group queries, key, value; then gate over up; layers stacked."""
    model = make_model(tmp_path / "hf", "qwen2")
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    weights_dir = tmp_path / "megatron/iter_0000001"
    attention, mlp = model.model.layers[1].self_attn, model.model.layers[1].mlp
    qkv = load_with_torch(weights_dir, "decoder.layers.self_attention.linear_qkv.weight", (2, 64, 32))[1]
    query, key, value = (part.weight for part in (attention.q_proj, attention.k_proj, attention.v_proj))
    assert torch.equal(qkv, torch.cat([query[:16], key[:8], value[:8], query[16:], key[8:], value[8:]]))
    fc1 = load_with_torch(weights_dir, "decoder.layers.mlp.linear_fc1.weight", (2, 96, 32))[1]
    assert torch.equal(fc1, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))


def test_what_travels_along(tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "qwen3")
    beside = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md", "generation_config.json")
    for name in beside:
        (tmp_path / "hf" / name).write_text("{}")
    (tmp_path / "hf/training_args.bin").write_text("a pickle that nobody asked for")
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    to_huggingface(tmp_path / "megatron", tmp_path / "back")
    for name in (*beside, "config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()
    assert not (tmp_path / "back/training_args.bin").exists()


def test_the_model_loads_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = make_model(tmp_path / "hf", "qwen3_moe")
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    to_huggingface(tmp_path / "megatron", tmp_path / "back")
    tokens = torch.arange(20)[None]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype="float32").eval()
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(sizes=SIZES)
def test_random_small_models(sizes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """The weights are any bits, NaN too, in two of the types. `test_megatron` loads more such models on the way."""
    tmp_path = tmp_path_factory.mktemp("random")
    write_random(tmp_path / "hf", sizes)
    options = {"directory": sizes["directory"], "vocabulary_multiple": sizes["multiple"]}
    to_megatron(tmp_path / "hf", tmp_path / "megatron", **options)
    to_huggingface(tmp_path / "megatron", tmp_path / "back", max_shard_bytes=sizes["shard_bytes"])
    assert_same_weights(tmp_path / "hf", tmp_path / "back")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "qwen3_mo"}, "config.json: model_type: no map for 'qwen3_mo'; did you mean 'qwen3_moe'?"),
        ({"num_hidden_layers": 3}, "no tensor model.layers.2.input_layernorm.weight, which Qwen2ForCausalLM needs"),
        ({"num_hidden_layers": 1}, "has no place in Qwen2ForCausalLM; it would be lost"),
        ({"hidden_size": 16, "head_dim": 8}, "has shape [100, 32], but config.json says [100, 16]"),
        ({"num_key_value_heads": 3}, "config.json: num_key_value_heads: 3 does not divide the 4 attention heads"),
        ({"num_attention_heads": "four"}, "config.json: num_attention_heads: found four"),
        ({"hidden_act": "gelu"}, "config.json: hidden_act: found gelu, and only SwiGLU layers convert"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "config.json: rope_scaling: found type 'yarn'"),
        ({"quantization_config": {"bits": 4}}, "quantized weights do not convert"),
    ],
)
def test_a_model_that_does_not_convert_is_told(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "qwen2")
    edit_json(tmp_path / "hf/config.json", **change)
    with pytest.raises(RequestError) as error:
        to_megatron(tmp_path / "hf", tmp_path / "megatron")
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "megatron").exists()
