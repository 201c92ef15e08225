"""What megatron-core itself says of layouts, in one process on the CPU: run by test_preflight_megatron.py.

    PYTHONPATH=DIRECTORY_WITH_MEGATRON_CORE python megatron_layouts.py < LAYOUTS.jsonl > ANSWERS.jsonl

A layout is one JSON object; its answer is an object of the checks that were reached: {check: null or the refusal}.
The world is torch's fake process group, so 512 ranks are one process, and the modules are built on the meta device.
Rank 0 builds its first chunk of layers with both the embedding and the output layer, so that each divisibility that
megatron-core asserts in a module is asserted here. Layers are those of the local spec. Without Transformer Engine they
refuse context parallelism and, with RMSNorm, sequence parallelism; a layout that says it has Transformer Engine gets
stand-ins that skip these two refusals.
"""

import copy
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.num_microbatches_calculator import ConstantNumMicroBatchesCalculator
from megatron.core.pipeline_parallel.schedules import forward_backward_pipelining_with_interleaving
from megatron.core.tensor_parallel.mappings import scatter_to_sequence_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.utils import get_batch_on_this_cp_rank
from torch.testing._internal.distributed.fake_pg import FakeStore


class AnyContextAttention(DotProductAttention):
    """The local attention, built as though the sequence were whole, as Transformer Engine's can be."""

    def __init__(self, config: TransformerConfig, *arguments: Any, **named: Any):
        config = copy.copy(config)
        config.context_parallel_size = 1
        super().__init__(config, *arguments, **named)


class AnySequenceNorm(WrappedTorchNorm):
    """The local norm, built as though the sequence were whole."""

    def __new__(cls, config: TransformerConfig, *arguments: Any, **named: Any) -> Any:
        config = copy.copy(config)
        config.sequence_parallel = False
        return super().__new__(cls, config, *arguments, **named)


class ChecksPassedError(Exception):
    """The schedule got past its checks."""


class Chunk(torch.nn.Module):
    """A model chunk for the schedule, which asks for its type right after the checks."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config

    @property
    def model_type(self) -> None:
        raise ChecksPassedError


class Layout:
    """One layout, asked check by check."""

    def __init__(self, fields: dict[str, Any]):
        self.fields, self.answers = fields, dict[str, str | None]()

    def ask(self, check: str, call: Callable[[], Any]) -> Any:
        """Call, and note whether it refuses; None where it does."""
        try:
            result = call()
        except ChecksPassedError:
            result = None
        except (AssertionError, ValueError, RuntimeError, NameError) as error:  # 0.15.3 forgets to import warnings
            self.answers[check] = f"{type(error).__name__}: {str(error)[:150]}"
            return None
        self.answers[check] = None
        return result

    def run(self) -> dict[str, str | None]:
        f = self.fields
        torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=f["gpus"])
        try:
            self.ask("world", self.world)
            config = self.ask("config", self.config)
            if self.answers["world"] is None and config is not None:
                model = self.ask("model", lambda: self.model(config))
                self.while_running(config, model)
        finally:
            parallel_state.destroy_model_parallel()
            torch.distributed.destroy_process_group()
        return self.answers

    def world(self) -> None:
        f = self.fields
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=f["tensor"],
            pipeline_model_parallel_size=f["pipeline"],
            virtual_pipeline_model_parallel_size=f["virtual_pipeline"],
            context_parallel_size=f["context"],
            expert_model_parallel_size=f["expert"],
            expert_tensor_parallel_size=f["expert_tensor"],
            create_gloo_process_groups=False,
        )

    def config(self) -> TransformerConfig:
        f = self.fields
        experts = f["experts"] or None
        return TransformerConfig(
            num_layers=f["layers"],
            hidden_size=f["hidden"],
            num_attention_heads=f["heads"],
            num_query_groups=f["groups"],
            kv_channels=f["head_dim"],
            ffn_hidden_size=f["ffn"],
            num_moe_experts=experts,
            moe_ffn_hidden_size=f["expert_ffn"] if experts else None,
            moe_router_topk=f["experts_per_token"] or 2,
            moe_router_load_balancing_type="none",
            moe_token_dispatcher_type="alltoall",
            add_bias_linear=False,
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
            perform_initialization=False,
            bf16=True,
            params_dtype=torch.bfloat16,
            pipeline_dtype=torch.bfloat16,
            tensor_model_parallel_size=f["tensor"],
            pipeline_model_parallel_size=f["pipeline"],
            virtual_pipeline_model_parallel_size=f["virtual_pipeline"],
            context_parallel_size=f["context"],
            expert_model_parallel_size=f["expert"],
            expert_tensor_parallel_size=f["expert_tensor"],
            sequence_parallel=f["sequence_parallel"],
        )

    def model(self, config: TransformerConfig) -> GPTModel:
        f = self.fields
        spec = get_gpt_layer_local_spec(num_experts=f["experts"] or None, normalization="RMSNorm")
        stage = 0 if f["virtual_pipeline"] else None
        if f["transformer_engine"]:
            spec.submodules.self_attention.submodules.core_attention = AnyContextAttention
            spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = AnySequenceNorm
            layers = get_num_layers_to_build(config, vp_stage=stage)
            spec = TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=AnySequenceNorm)
        multiple = 128 * f["tensor"]
        with torch.device("meta"):
            return GPTModel(
                config,
                spec,
                vocab_size=-(-f["vocabulary"] // multiple) * multiple,
                max_sequence_length=f["sequence_length"],
                position_embedding_type="none",
                share_embeddings_and_output_weights=False,
                vp_stage=stage,
            )

    def while_running(self, config: TransformerConfig, model: GPTModel | None) -> None:
        f = self.fields
        copies = parallel_state.get_data_parallel_world_size()
        counted = self.ask(
            "batch", lambda: ConstantNumMicroBatchesCalculator(f["global_"], f["micro"], copies, False, 0)
        )
        if counted is not None and f["virtual_pipeline"]:
            self.ask("schedule", lambda: self.schedule(config, counted.get()))
        local = {"tokens": torch.empty(f["micro"], f["sequence_length"], device="meta")}
        sliced = self.ask("context", lambda: get_batch_on_this_cp_rank(local))
        if sliced is not None and f["sequence_parallel"]:
            self.ask("scatter", lambda: scatter_to_sequence_parallel_region(sliced["tokens"].transpose(0, 1)))
        if model is not None and f["experts"]:
            self.ask("experts", lambda: self.experts(model))

    def schedule(self, config: TransformerConfig, rounds: int) -> None:
        chunks = self.fields["virtual_pipeline"]
        forward_backward_pipelining_with_interleaving(
            forward_step_func=None,
            data_iterator=[None] * chunks,
            model=[Chunk(config)] * chunks,
            num_microbatches=rounds,
            seq_length=self.fields["sequence_length"],
            micro_batch_size=self.fields["micro"],
            forward_only=True,
        )

    def experts(self, model: GPTModel) -> None:
        """The first lines of MoELayer.forward; past them it finds no tensor to work on."""
        layer = model.decoder.layers[0].mlp.train()
        try:
            layer(None)
        except (AttributeError, TypeError):
            raise ChecksPassedError from None


def put_cpu_in_place_of_cuda() -> None:
    """What the calls above touch of CUDA, on the CPU."""
    zeros = torch.zeros
    torch.zeros = lambda *size, **named: zeros(*size, **{**named, "device": "cpu"})
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.Stream = lambda *_, **__: None
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor


def main() -> None:
    torch.set_num_threads(1)
    put_cpu_in_place_of_cuda()
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(Layout(json.loads(line)).run()), file=answers, flush=True)


if __name__ == "__main__":
    main()
