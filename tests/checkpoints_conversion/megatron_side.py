"""A real megatron-core GPTModel on the CPU: run by `MEGATRON_PYTHON`, an interpreter that has megatron-core.

    megatron_side.py save   CONFIG.json DIR          a random model, saved by megatron-core itself
    megatron_side.py logits CONFIG.json DIR OUT.pt   loads DIR, writes the fp32 logits of fixed tokens

CONFIG.json: the fields of `reasonforge`'s model spec that a GPTModel needs (`model_fields` in test_megatron.py), and
tp, pp. It is started once per rank with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.
The shim makes megatron-core, which thinks that it has a GPU, work without one; it is for tests only.
"""

import json
import sys
from typing import Any

import torch


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


def build(spec: dict):
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer import TransformerConfig

    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(spec["tp"], spec["pp"])
    model_parallel_cuda_manual_seed(1)
    torch.manual_seed(1)
    experts = spec.get("experts")
    dtype = getattr(torch, spec.get("dtype", "float32"))
    config = TransformerConfig(
        num_layers=spec["layers"],
        hidden_size=spec["hidden"],
        num_attention_heads=spec["heads"],
        num_query_groups=spec["groups"],
        kv_channels=spec["head_dim"],
        ffn_hidden_size=spec["ffn"],
        num_moe_experts=experts,
        moe_ffn_hidden_size=spec["moe_ffn"] if experts else None,
        moe_router_topk=spec.get("topk", 2),
        moe_router_pre_softmax=not spec.get("norm_topk", True),
        moe_router_load_balancing_type="none",
        moe_token_dispatcher_type="allgather" if spec["tp"] == 1 else "alltoall",
        add_bias_linear=False,
        add_qkv_bias=spec["qkv_bias"],
        qk_layernorm=spec["qk_norm"],
        layernorm_epsilon=spec["norm_epsilon"],
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        use_cpu_initialization=True,
        tensor_model_parallel_size=spec["tp"],
        pipeline_model_parallel_size=spec["pp"],
        sequence_parallel=bool(experts and spec["tp"] > 1),
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
    )
    rope = spec.get("rope_factor")
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
        rope_scaling=bool(rope),
        rope_scaling_factor=rope or 8.0,
    )
    return model.to(dtype).eval()


def run(model, tokens):
    from megatron.core import parallel_state

    length = tokens.shape[1]
    positions = torch.arange(length).expand_as(tokens)
    mask = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)[None, None]
    pp, stage = (
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_rank(),
    )
    group = parallel_state.get_pipeline_model_parallel_group()
    if stage > 0:
        config = model.config
        received = torch.empty(length, tokens.shape[0], config.hidden_size, dtype=config.params_dtype)
        torch.distributed.recv(received, src=parallel_state.get_pipeline_model_parallel_prev_rank(), group=group)
        model.set_input_tensor(received)
    with torch.no_grad():
        out = model(tokens, positions, mask)
    if stage < pp - 1:
        torch.distributed.send(
            out.contiguous(), dst=parallel_state.get_pipeline_model_parallel_next_rank(), group=group
        )
        return None
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    return gather_from_tensor_model_parallel_region(out)


def main() -> None:
    verb, config, directory = sys.argv[1:4]
    with open(config, encoding="utf-8") as handle:
        spec = json.load(handle)
    torch.set_num_threads(1)
    put_cpu_in_place_of_cuda()
    from megatron.core import dist_checkpointing

    model = build(spec)
    prefix = spec.get("prefix", "")
    if verb == "save":
        state = model.sharded_state_dict(prefix=prefix) | {"iteration": 7, "checkpoint_version": 3.0}
        dist_checkpointing.save(state, directory)
    else:
        loaded = dist_checkpointing.load(model.sharded_state_dict(prefix=prefix), directory, strict="log_all")
        loaded = {key.removeprefix(prefix): value for key, value in loaded.items()}
        missing = model.load_state_dict(loaded, strict=False).missing_keys
        assert all(key.endswith("_extra_state") for key in missing), missing
        tokens = torch.arange(2 * 24).reshape(2, 24) * 7 % spec["vocab"]
        logits = run(model, tokens)
        if logits is not None and torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            torch.save(logits.float(), sys.argv[4])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
