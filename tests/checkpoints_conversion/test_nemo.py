"""Our NeMo 2 directories load into the real nemo_toolkit, train there, and export again to what they were made from.

NeMo lives in an environment of its own, made by `make nemo-env`; NEMO_PYTHON names another interpreter. Without either,
what needs it is skipped, but fails where CI is true. NeMo is started once for all tests (nemo_side.py).
"""

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nemo_place import nemo_environment, nemo_python
from tiny_checkpoints import (
    LLAMA3_ROPE,
    assert_same_weights,
    counter,
    edit_json,
    make_model,
    to_huggingface,
    to_megatron,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from checkpoints_conversion.inspection import inspect
from checkpoints_conversion.torch_dist import open_torch_dist
from checkpoints_conversion.verification import compare
from reasonforge.errors import RequestError

SIDE = Path(__file__).with_name("nemo_side.py")
TEXT = "<|im_start|>user\n17 + 25"

pytestmark = pytest.mark.xdist_group("nemo")


@dataclass(frozen=True)
class Case:
    """A tiny model: how it is made, imported and trained."""

    family: str
    changes: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    imported_by_nemo: bool = False


CASES = {
    "llama": Case("llama", imported_by_nemo=True),
    "llama-bf16": Case("llama", {"dtype": "bfloat16"}),
    "llama-scaled": Case("llama-rope-scaled", {"tie_word_embeddings": True}, imported_by_nemo=True),
    "qwen2": Case("qwen2", imported_by_nemo=True),
    "qwen2-padded": Case("qwen2", {"tie_word_embeddings": True, "vocab_size": 390}),
    "qwen3": Case("qwen3", {"head_dim": 128}, imported_by_nemo=True),
    "qwen3_moe": Case("qwen3_moe", options={"layer_spec": "local"}),
}
FLOAT32 = [name for name in CASES if not name.endswith("bf16")]
IMPORTED = [name for name, case in CASES.items() if case.imported_by_nemo]


def save_tokenizer(directory: Path) -> None:
    """A tokenizer of bytes, described in the words of transformers 5, which NeMo's transformers 4 does not know."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    core.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "TokenizersBackend",
        "backend": "tokenizers",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "extra_special_tokens": ["<|im_start|>"],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")


def tiny(directory: Path, name: str) -> Any:
    case = CASES[name]
    sharp = {"vocab_size": 384, "initializer_range": 0.1}  # attention that is not nearly uniform shows a wrong rope
    model = make_model(directory, case.family, **(sharp | case.changes))
    save_tokenizer(directory)
    return model


def in_words_of_transformers_4(source: Path, target: Path) -> None:
    """A copy that the transformers of NeMo's own importer reads."""
    shutil.copytree(source, target)
    rope = json.loads((source / "config.json").read_text())["rope_parameters"]
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    edit_json(
        target / "config.json",
        rope_theta=rope["rope_theta"],
        rope_scaling=scaling if scaling["rope_type"] == "llama3" else None,
        torch_dtype="float32",
    )
    edit_json(target / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", extra_special_tokens={})


@dataclass(frozen=True)
class Nemo:
    """What NeMo did: with `hf` models, `ours` imported by us, `out/imported` by itself, `out/trained` saved by it."""

    root: Path
    contexts: dict[str, Any]

    def path(self, kind: str, name: str) -> Path:
        return self.root / kind / name


@pytest.fixture(scope="module")
def nemo(tmp_path_factory: pytest.TempPathFactory) -> Nemo:
    """Import every case, and have one process of NeMo load, train and save all of them."""
    python = nemo_python()
    root = tmp_path_factory.mktemp("nemo")
    for name, case in CASES.items():
        model = tiny(root / "hf" / name, name)
        with torch.no_grad():
            torch.save(model(torch.arange(2 * 24).reshape(2, 24) * 7 % 100).logits.float(), root / f"{name}.pt")
        to_megatron(root / "hf" / name, root / "made" / name, directory="nemo", **case.options)
        if case.imported_by_nemo:
            in_words_of_transformers_4(root / "hf" / name, root / "hf4" / name)
    (root / "made").rename(root / "ours")  # no path may lead to where it was made
    (root / "data").mkdir()
    rows = "".join(json.dumps({"input": f"{n} + {n} =", "output": f" {2 * n}"}) + "\n" for n in range(4))
    for part in ("training", "validation", "test"):
        (root / f"data/{part}.jsonl").write_text(rows)
    job = {
        "out": str(root / "out"),
        "data": str(root / "data"),
        "text": TEXT,
        "imports": {name: str(root / "hf4" / name) for name in IMPORTED},
        "finetunes": {name: str(root / "ours" / name) for name in CASES},
    }
    (root / "job.json").write_text(json.dumps(job))
    process = subprocess.run(
        [python, str(SIDE), str(root / "job.json")],
        env=nemo_environment(root / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=root,
    )
    assert process.returncode == 0, process.stdout[-4000:]
    return Nemo(root, json.loads((root / "out/contexts.json").read_text()))


def expected_fields(config: dict[str, Any]) -> dict[str, Any]:
    """NeMo's fields of a model, from its config.json."""
    rope = config["rope_parameters"]
    fields = {
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "ffn_hidden_size": config["intermediate_size"],
        "num_attention_heads": config["num_attention_heads"],
        "num_query_groups": config["num_key_value_heads"],
        "kv_channels": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        "seq_length": config["max_position_embeddings"],
        "vocab_size": -(-config["vocab_size"] // 128) * 128,
        "make_vocab_size_divisible_by": 128,
        "rotary_base": rope["rope_theta"],
        "rotary_percent": 1.0,
        "position_embedding_type": "rope",
        "normalization": "RMSNorm",
        "layernorm_epsilon": config["rms_norm_eps"],
        "activation_func": "silu",
        "gated_linear_unit": True,
        "add_bias_linear": False,
        "add_qkv_bias": config["model_type"] == "qwen2",
        "qk_layernorm": config["model_type"].startswith("qwen3"),
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "init_method_std": config["initializer_range"],
        "share_embeddings_and_output_weights": config["tie_word_embeddings"],
        "params_dtype": f"torch.{config['dtype']}",
        "bf16": config["dtype"] == "bfloat16",
        "fp16": False,
        "num_moe_experts": None,
        "window_size": None,
    }
    if rope["rope_type"] == "llama3":
        fields |= {"scale_factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "old_context_len": 8192}
    if config["model_type"] == "qwen3_moe":
        fields |= {
            "num_moe_experts": 4,
            "moe_router_topk": 2,
            "moe_ffn_hidden_size": 16,
            "moe_router_pre_softmax": False,
            "moe_grouped_gemm": True,
        }
    return fields


@pytest.mark.parametrize("name", CASES)
def test_nemo_builds_the_configuration_from_the_context(name: str, nemo: Nemo) -> None:
    found = nemo.contexts[name]
    expected = expected_fields(json.loads((nemo.path("hf", name) / "config.json").read_text()))
    assert {key: found["fields"][key] for key in expected} == expected
    classes = {
        "llama-scaled": ("Llama31Config", "LlamaModel"),
        "qwen3": ("Qwen3Config", "Qwen3Model"),
        "qwen3_moe": ("Qwen3MoEConfig", "Qwen3Model"),
    }
    family = name.partition("-")[0].capitalize()
    assert (found["config"], found["model"]) == classes.get(name, (f"{family}Config", f"{family}Model"))
    assert found["fields"]["generation_config"]["use_cache"] is True
    assert found["trainer"] == "Trainer"


def test_nemo_tokenizes_as_the_source_does(nemo: Nemo) -> None:
    from transformers import AutoTokenizer

    expected = AutoTokenizer.from_pretrained(nemo.path("hf", "qwen2"))(TEXT, add_special_tokens=False).input_ids
    carried = AutoTokenizer.from_pretrained(nemo.path("ours", "qwen2") / "context/nemo_tokenizer")
    assert carried(TEXT, add_special_tokens=False).input_ids == expected
    assert all(found["tokens"] == expected for found in nemo.contexts.values())


@pytest.mark.parametrize("name", FLOAT32)
def test_a_finetuning_starts_with_the_logits_of_transformers(name: str, nemo: Nemo, record_property: Any) -> None:
    """`llm.finetune` with our directory as its restore path: the logits before the first step."""
    expected = torch.load(nemo.root / f"{name}.pt")
    found = torch.load(nemo.root / "out" / f"{name}.pt")[..., : expected.shape[-1]]
    difference = (found - expected).abs().max().item()
    record_property("largest difference of a logit", difference)
    assert difference < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_what_nemo_saves_exports_to_the_source(name: str, nemo: Nemo, tmp_path: Path) -> None:
    """Two steps of `llm.finetune` with a learning rate of 0 change no bit; the files beside the weights return too."""
    trained = nemo.path("out/trained", name)
    found = inspect(trained, None)
    assert (found["format"], found["missing"]) == ("nemo", [])
    to_huggingface(trained, tmp_path / "back")
    source = nemo.path("hf", name)
    assert_same_weights(source, tmp_path / "back")
    for file in ("tokenizer.json", "chat_template.jinja", "config.json", "generation_config.json"):
        assert (tmp_path / "back" / file).read_text() == (source / file).read_text()


@pytest.mark.parametrize("name", IMPORTED)
def test_the_weights_are_those_of_nemos_own_importer(name: str, nemo: Nemo) -> None:
    ours, theirs = nemo.path("ours", name), nemo.path("out/imported", name)
    one, other = open_torch_dist(ours / "weights"), open_torch_dist(theirs / "weights")
    shapes = [
        {key: (tensor.dtype, tensor.shape, sorted(chunk.offsets for chunk in tensor.chunks)) for key, tensor in all_}
        for all_ in (one.metadata.tensors.items(), other.metadata.tensors.items())
    ]
    assert shapes[0] == shapes[1]
    assert set(other.metadata.objects) <= set(one.metadata.objects)
    assert compare(ours, theirs, None, nemo.path("hf", name), counter).good
    assert one.common | {"callbacks": {}} == other.common | {"callbacks": {}}  # NeMo has those of the run that saved


KNOWN = {
    # Its importer leaves these to defaults that are those of released models.
    "qwen3": {"seq_length", "max_position_embeddings", "make_vocab_size_divisible_by"},
}


@pytest.mark.parametrize("name", IMPORTED)
def test_the_context_is_that_of_nemos_own_importer(name: str, nemo: Nemo) -> None:
    ours, theirs = nemo.contexts[name], nemo.contexts[f"imported-{name}"]
    assert ours["fields"].keys() == theirs["fields"].keys()
    differing = {key for key, value in ours["fields"].items() if value != theirs["fields"][key]}
    assert differing == KNOWN.get(name, set())
    assert {**ours, "fields": {}} == {**theirs, "fields": {}}
    written, other = (
        yaml.safe_load((nemo.path(kind, name) / "context/model.yaml").read_text()) for kind in ("ours", "out/imported")
    )
    config, expected = written.pop("config"), other.pop("config")
    differing = {key for key, value in config.items() if value != expected[key]} - KNOWN.get(name, set())
    assert differing <= {"kv_channels"}  # which NeMo may leave to be worked out
    assert written == {key: other[key] for key in written} | {"tokenizer": written["tokenizer"]}
    assert written["tokenizer"].items() <= other["tokenizer"].items()


def test_the_context_names_no_path_of_this_machine(tmp_path: Path) -> None:
    tiny(tmp_path / "hf", "qwen2")
    to_megatron(tmp_path / "hf", tmp_path / "nemo", directory="nemo")
    for file in ("io.json", "model.yaml"):
        assert str(tmp_path) not in (tmp_path / "nemo/context" / file).read_text()
    to_huggingface(tmp_path / "nemo", tmp_path / "back")
    assert_same_weights(tmp_path / "hf", tmp_path / "back")
    for file in (tmp_path / "hf").glob("*[!s]"):
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()


def test_a_model_without_a_tokenizer_has_none_in_its_context(tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "llama")
    (tmp_path / "hf/generation_config.json").unlink()
    to_megatron(tmp_path / "hf", tmp_path / "nemo", directory="nemo")
    found = yaml.safe_load((tmp_path / "nemo/context/model.yaml").read_text())
    assert "tokenizer" not in found
    assert "generation_config" not in found["config"]


def test_a_scaled_rope_that_nemo_has_not_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "qwen2", rope_parameters=LLAMA3_ROPE)
    with pytest.raises(RequestError, match="NeMo scales Llama's rope only"):
        to_megatron(tmp_path / "hf", tmp_path / "nemo", directory="nemo")
    assert not (tmp_path / "nemo").exists()
