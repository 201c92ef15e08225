"""Makes `bridge_keys.json`: real Megatron-Bridge imports the models of `known_models`, and what it wrote is listed.

    cd tests/checkpoints_conversion
    PYTHONPATH=../..:.. python bridge_side.py > bridge_keys.json

Run by hand, with a Python that has torch 2.13.0, transformers 4.57.6, and, installed with --no-deps,
megatron-bridge 0.3.1, megatron-core 0.16.1, nvidia-modelopt 0.37.0 and nvidia-resiliency-ext 0.4.1 with what they
import. Transformer Engine needs a GPU: plain modules with the names of its parameters and states stand in for its own,
so megatron-core's wrappers, which choose the keys, are the real ones.
"""

import contextlib
import json
import re
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from stand_ins import StandIns
from torch import nn

MADE_BY = (
    "AutoBridge of megatron-bridge 0.3.1 with megatron-core 0.16.1 and torch 2.13.0 on the CPU, from the models of "
    "known_models.py, by bridge_side.py. te: megatron-core's Transformer Engine layer spec, with plain torch modules "
    "of the same parameter names in place of Transformer Engine's own. local: its local layer spec. "
    "tensors: type, shape, SHA-256 of the values."
)
LEFT_OUT = ("hf_model_id", "make_vocab_size_divisible_by")
"""A path, and a field without effect where the vocabulary is not padded."""


class State(nn.Module):
    """Without FP8, Transformer Engine's state beside the weights is an empty tensor."""

    def get_extra_state(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        pass


class Linear(State):
    def __init__(self, in_features: int, out_features: int, bias: bool = True, params_dtype: Any = None, **other: Any):
        super().__init__()
        self.tp_size, self.tp_rank, self.parallel_mode = 1, 0, other["parallel_mode"]
        self.weight = nn.Parameter(torch.zeros(out_features, in_features, dtype=params_dtype))
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features, dtype=params_dtype))


class LayerNormLinear(Linear):
    def __init__(self, in_features: int, out_features: int, params_dtype: Any = None, **other: Any):
        super().__init__(in_features, out_features, params_dtype=params_dtype, **other)
        self.layer_norm_weight = nn.Parameter(torch.ones(in_features, dtype=params_dtype))


class GroupedLinear(State):
    def __init__(self, num_gemms: int, in_features: int, out_features: int, bias: bool, params_dtype: Any, **_: Any):
        super().__init__()
        self.num_gemms, self.use_bias = num_gemms, bias
        self.fp8_meta, self.fp8, self.fp8_calibration = {"fp8_checkpoint": False}, False, False
        for number in range(num_gemms):
            weight = nn.Parameter(torch.zeros(out_features, in_features, dtype=params_dtype))
            setattr(self, f"weight{number}", weight)

    def init_fp8_metadata(self, num_gemms: int = 1) -> None:
        pass


class RMSNorm(State):
    def __init__(self, hidden_size: int, params_dtype: Any = None, **_: Any):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=params_dtype))


class DotProductAttention(State):
    def __init__(self, *_: Any, **__: Any):
        super().__init__()

    def forward(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def put_stand_ins() -> None:
    """Before megatron-core is imported: Transformer Engine and CUDA. After it: triton, and no compiling."""
    import torch._dynamo
    import transformers.modeling_utils  # noqa: F401 - they look at what is replaced below

    sys.meta_path.append(StandIns("transformer_engine", "transformer_engine_torch"))
    import transformer_engine.pytorch as engine
    import transformer_engine.pytorch.cpu_offload as offload

    for stand_in in (Linear, LayerNormLinear, GroupedLinear, RMSNorm, DotProductAttention):
        setattr(engine, stand_in.__name__, stand_in)
    engine.get_cpu_offload_context = offload.get_cpu_offload_context = lambda *_, **__: (None, None)
    torch.compile = lambda function=None, **_: function or (lambda inner: inner)
    from megatron.core.tensor_parallel import random

    torch.cuda.current_device = lambda: torch.device("cpu")
    for name in ("synchronize", "empty_cache", "set_device", "Stream"):
        setattr(torch.cuda, name, lambda *_, **__: None)
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda it, *_, **__: it
    torch.cuda.manual_seed = torch.manual_seed
    torch.cuda.get_rng_state = random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    torch.cuda.set_rng_state = random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    for name in ("empty", "zeros", "tensor", "arange"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    sys.meta_path.append(StandIns("triton"))


def _on_cpu(make: Any) -> Any:
    def made(*arguments: Any, **named: Any) -> Any:
        if str(named.get("device")).startswith("cuda"):
            named["device"] = "cpu"
        return make(*arguments, **named)

    return made


def start_world() -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)


def import_with_bridge(model: Path, directory: Path, layer_spec: str) -> None:
    """What AutoBridge.import_ckpt does; the local layer spec has no fusions and no grouped experts."""
    from megatron.bridge import AutoBridge
    from megatron.bridge.models import gpt_provider
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    if layer_spec == "te":
        AutoBridge.import_ckpt(model, directory, torch_dtype="auto")
        return
    bridge = AutoBridge.from_hf_pretrained(model, torch_dtype="auto")
    provider = bridge.to_megatron_provider()
    for field in ("persist_layer_norm", "moe_grouped_gemm", "moe_permute_fusion", "apply_rope_fusion"):
        setattr(provider, field, False)
    gpt_provider.transformer_engine_layer_spec = lambda config: get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts, qk_layernorm=config.qk_layernorm, normalization="RMSNorm"
    )
    provider.finalize()
    made = provider.provide_distributed_model(wrap_with_ddp=False, use_cpu_initialization=True)
    bridge.save_megatron_model(made, directory, hf_tokenizer_path=model, low_memory_save=True)


def describe(te: Path, local: Path, kept: dict[str, Any]) -> dict[str, Any]:
    """The fixture's entry for one model. `kept` is our own run_config.yaml: its fields are those that are compared."""
    from test_bridge import described

    from checkpoints_conversion.torch_dist import open_torch_dist

    weights, others = te / "iter_0000000", local / "iter_0000000"
    found, spelled = (dict(sorted(described(place).items())) for place in (weights, others))
    spelling = {}
    for key in found.keys() - spelled.keys():
        [spelling[key]] = [other for other in spelled.keys() - found.keys() if spelled[other] == found[key]]
    assert spelled == {spelling.get(key, key): value for key, value in found.items()}
    config = yaml.safe_load((weights / "run_config.yaml").read_text())
    return {
        "tensors": found,
        "local_spelling": spelling,
        "objects": {
            name: sorted(open_torch_dist(place).metadata.objects)
            for name, place in (("te", weights), ("local", others))
        },
        "common": torch.load(weights / "common.pt", weights_only=True),
        "files": sorted(
            path.relative_to(te).as_posix() for path in te.rglob("*") if path.is_file() and path.suffix != ".distcp"
        ),
        "run_config": {
            "model": {key: config["model"][key] for key in sorted(kept["model"]) if key not in LEFT_OUT},
            "checkpoint": {key: config["checkpoint"][key] for key in kept["checkpoint"]},
            "tokenizer": {"tokenizer_type": config["tokenizer"]["tokenizer_type"]},
        },
    }


def render(found: dict[str, Any]) -> str:
    """JSON with a line for each tensor."""
    text = json.dumps(found, indent=1)
    short = re.compile(r'\[\s+((?:"[^"]*"|[^"{}\[\]]|\[[^\[\]{}]*\])*?)\s+\]')

    def joined(list_: re.Match[str]) -> str:
        return "[" + re.sub(r",\s+", ", ", list_[1]) + "]" if len(list_[0]) < 200 else list_[0]

    return short.sub(joined, short.sub(joined, text))


def main() -> None:
    put_stand_ins()
    from known_models import KNOWN, write_known
    from tiny_checkpoints import to_megatron

    models = {}
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        start_world()
        for layer_spec in ("te", "local"):
            for name in KNOWN:
                place = Path(scratch) / name
                if layer_spec == "te":
                    write_known(place / "hf", name)
                import_with_bridge(place / "hf", place / layer_spec, layer_spec)
        for name in KNOWN:
            place = Path(scratch) / name
            to_megatron(place / "hf", place / "ours", directory="bridge", vocabulary_multiple=1)
            ours = yaml.safe_load((place / "ours/iter_0000000/run_config.yaml").read_text())
            models[name] = describe(place / "te", place / "local", ours)
    sys.stdout.write(render({"made_by": MADE_BY, "models": models}) + "\n")


if __name__ == "__main__":
    main()
