"""Real megatron-core GPTModels on the CPU, one rank of a world: `megatron_client` starts it and sends it cases.

    PYTHONPATH=.megatron/VERSION python megatron_side.py RANK

Each line on stdin is a case as JSON; its answer is one JSON line on the stdout it was started with: {} or
{"error": ...}. Every case has a process group and a model of its own; `spec` holds the model's shape and `tp`, `pp` and
`ep`. The verb "save" lets megatron-core itself save a random model into `directory`. "load" loads `directory`, compares
its values with those of the Hugging Face model `model`, and writes the fp32 logits of `tokens` to `logits`, if given.
The shim makes megatron-core, which thinks that it has a GPU, work without one; it is for tests only.
"""

import json
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

MODEL_SETTINGS: dict[str, Any] = {
    "moe_router_load_balancing_type": "none",
    "moe_token_dispatcher_type": "allgather",
    "add_bias_linear": False,
    "gated_linear_unit": True,
    "activation_func": torch.nn.functional.silu,
    "normalization": "RMSNorm",
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "gradient_accumulation_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "masked_softmax_fusion": False,
    "apply_rope_fusion": False,
    "persist_layer_norm": False,
    "use_cpu_initialization": True,
}


def put_cpu_in_place_of_cuda() -> None:
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer.moe import moe_utils

    def nothing(*_: object, **__: object) -> None:
        pass

    def itself(it: Any, *_: object, **__: object) -> Any:
        return it

    def get_state(*_: object, **__: object) -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(state: torch.Tensor, *_: object, **__: object) -> None:
        torch.set_rng_state(state)

    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.synchronize = torch.cuda.empty_cache = nothing
    torch.Tensor.cuda = torch.nn.Module.cuda = itself
    torch.cuda.manual_seed = torch.manual_seed
    torch.cuda.get_rng_state = random._get_cuda_rng_state = get_state
    torch.cuda.set_rng_state = random._set_cuda_rng_state = set_state
    moe_utils.te_general_gemm = None  # megatron-core 0.15.3 forgets it where Transformer Engine is absent


def build(spec: dict[str, Any]) -> Any:
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    experts = spec["experts"]
    dtype = getattr(torch, spec["dtype"])
    config = TransformerConfig(
        num_layers=spec["layers"],
        hidden_size=spec["hidden"],
        num_attention_heads=spec["heads"],
        num_query_groups=spec["groups"],
        kv_channels=spec["head_dim"],
        ffn_hidden_size=spec["ffn"],
        num_moe_experts=experts,
        moe_ffn_hidden_size=spec["moe_ffn"] if experts else None,
        moe_router_topk=spec["topk"] if experts else 2,
        moe_router_pre_softmax=not spec["norm_topk"],
        add_qkv_bias=spec["qkv_bias"],
        qk_layernorm=spec["qk_norm"],
        layernorm_epsilon=spec["norm_epsilon"],
        tensor_model_parallel_size=spec["tp"],
        pipeline_model_parallel_size=spec["pp"],
        expert_model_parallel_size=spec["ep"],
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        **MODEL_SETTINGS,
    )
    model = GPTModel(
        config,
        get_gpt_layer_local_spec(num_experts=experts, qk_layernorm=spec["qk_norm"], normalization="RMSNorm"),
        vocab_size=spec["padded_vocab"],
        max_sequence_length=spec["positions"],
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=spec["tied"],
        position_embedding_type="rope",
        rotary_base=spec["rope_theta"],
        rope_scaling=spec["rope_factor"] is not None,
        rope_scaling_factor=spec["rope_factor"] or 8.0,
    )
    return model.to(dtype).eval()


def load(model: Any, prefix: str, directory: str) -> None:
    """Load strictly: only Transformer Engine's states, which the local spec does without, may be left over."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.validation import StrictHandling

    loaded, missing, unexpected = dist_checkpointing.load(
        {"model": model.sharded_state_dict(prefix=prefix)}, directory, strict=StrictHandling.RETURN_ALL
    )
    assert all("_extra_state" in key for key in missing | unexpected), (missing, unexpected)
    state = {key.removeprefix(prefix): value for key, value in loaded["model"].items()}
    result = model.load_state_dict(state, strict=False)
    assert all(key.endswith("_extra_state") for key in result.missing_keys), result.missing_keys
    assert not result.unexpected_keys, result.unexpected_keys


def as_huggingface(state: dict[str, torch.Tensor], spec: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a model without parallelism under their Hugging Face names, taken apart by torch."""
    rows = spec["vocab"]
    found = {
        "model.embed_tokens.weight": state["embedding.word_embeddings.weight"][:rows],
        "model.norm.weight": state["decoder.final_layernorm.weight"],
    }
    if not spec["tied"]:
        found["lm_head.weight"] = state["output_layer.weight"][:rows]
    for key in ("embedding.word_embeddings.weight", "output_layer.weight"):
        assert key not in state or not state[key][rows:].any(), f"{key}: the padding is not zero"
    for layer in range(spec["layers"]):
        ours, theirs = f"decoder.layers.{layer}.", f"model.layers.{layer}."
        found[theirs + "input_layernorm.weight"] = state[ours + "input_layernorm.weight"]
        found[theirs + "post_attention_layernorm.weight"] = state[ours + "pre_mlp_layernorm.weight"]
        found[theirs + "self_attn.o_proj.weight"] = state[ours + "self_attention.linear_proj.weight"]
        for part in ("weight", "bias") if spec["qkv_bias"] else ("weight",):
            fused = state[ours + f"self_attention.linear_qkv.{part}"]
            groups = fused.reshape(spec["groups"], -1, spec["head_dim"], *fused.shape[1:])
            query, key, value = groups[:, :-2], groups[:, -2], groups[:, -1]
            found |= {
                f"{theirs}self_attn.{name}_proj.{part}": item.reshape(-1, *fused.shape[1:])
                for name, item in (("q", query), ("k", key), ("v", value))
            }
        if spec["qk_norm"]:
            for name in "qk":
                found[f"{theirs}self_attn.{name}_norm.weight"] = state[f"{ours}self_attention.{name}_layernorm.weight"]
        if spec["experts"]:
            found[theirs + "mlp.gate.weight"] = state[ours + "mlp.router.weight"]
        places = [(f"mlp.experts.local_experts.{number}.", f"mlp.experts.{number}.")
                  for number in range(spec["experts"] or 0)] or [("mlp.", "mlp.")]  # fmt: skip
        for inner, outer in places:
            gate, up = state[f"{ours}{inner}linear_fc1.weight"].chunk(2)
            found |= {f"{theirs}{outer}gate_proj.weight": gate, f"{theirs}{outer}up_proj.weight": up}
            found[f"{theirs}{outer}down_proj.weight"] = state[f"{ours}{inner}linear_fc2.weight"]
    return found


def compare(model: Any, spec: dict[str, Any], directory: str) -> None:
    from safetensors.torch import load_file

    expected = {
        name: tensor for path in Path(directory).glob("*.safetensors") for name, tensor in load_file(path).items()
    }
    found = as_huggingface(model.state_dict(), spec)
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype, name
        assert tensor.shape == found[name].shape, name
        assert torch.equal(tensor.view(torch.uint8), found[name].contiguous().view(torch.uint8)), name


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor | None:
    """The logits on every rank of the last pipeline stage, None before it."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    length = tokens.shape[1]
    positions = torch.arange(length).expand_as(tokens)
    mask = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)[None, None]
    group = parallel_state.get_pipeline_model_parallel_group()
    if not parallel_state.is_pipeline_first_stage():
        config = model.config
        received = torch.empty(length, tokens.shape[0], config.hidden_size, dtype=config.params_dtype)
        torch.distributed.recv(received, src=parallel_state.get_pipeline_model_parallel_prev_rank(), group=group)
        model.set_input_tensor(received)
    with torch.no_grad():
        out = model(tokens, positions, mask)
    if not parallel_state.is_pipeline_last_stage():
        following = parallel_state.get_pipeline_model_parallel_next_rank()
        torch.distributed.send(out.contiguous(), dst=following, group=group)
        return None
    return gather_from_tensor_model_parallel_region(out)


def run(rank: int, case: dict[str, Any]) -> None:
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    spec, world = case["spec"], case["world"]
    torch.distributed.init_process_group(
        "gloo", f"file://{case['rendezvous']}", timedelta(seconds=120), rank=rank, world_size=world
    )
    parallel_state.initialize_model_parallel(spec["tp"], spec["pp"], expert_model_parallel_size=spec["ep"])
    try:
        model_parallel_cuda_manual_seed(1)
        torch.manual_seed(1)
        model = build(spec)
        if case["verb"] == "save":
            state = model.sharded_state_dict() | {"iteration": 7, "checkpoint_version": 3.0}
            dist_checkpointing.save(state, case["directory"])
        else:
            load(model, case["prefix"], case["directory"])
            if "model" in case:
                compare(model, spec, case["model"])
        if "logits" in case:
            found = logits(model, torch.tensor(case["tokens"]))
            if found is not None and rank == world - 1:
                torch.save(found.float(), case["logits"])
        torch.distributed.barrier()
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what megatron-core prints goes to the log
    torch.set_num_threads(1)
    put_cpu_in_place_of_cuda()
    for line in sys.stdin:
        try:
            run(int(sys.argv[1]), json.loads(line))
            answer = {}
        except Exception:  # noqa: BLE001 - the test shows it
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
