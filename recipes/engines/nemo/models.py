"""The model's configuration: from NeMo's own recipe where there is one of its shape, with what the checkpoint says of
itself laid over it, and the engine's options over that. `configuration` calls it, in NeMo's environment.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from recipes.engines.megatron.options import FUSIONS
from recipes.engines.megatron.precision import recompute_fields
from recipes.engines.nemo.options import NeMoEngine

RECIPES = (
    *("qwen25_500m", "qwen25_1p5b", "qwen25_7b", "qwen25_14b", "qwen25_32b", "qwen25_72b"),
    *("qwen2_500m", "qwen2_1p5b", "qwen2_7b", "qwen2_72b"),
    *("qwen3_600m", "qwen3_1p7b", "qwen3_4b", "qwen3_8b", "qwen3_14b", "qwen3_32b"),
    *("qwen3_30b_a3b", "qwen3_235b_a22b"),
    *("llama31_8b", "llama31_70b", "llama31_405b", "llama32_1b", "llama32_3b", "llama3_8b", "llama3_70b"),
)
"""The recipes of nemo_toolkit 2.7.3 for the families that convert (`nemo.collections.llm.recipes`)."""

_SHAPE = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "num_moe_experts",
    "rotary_base",
    "scale_factor",
)
"""What two configurations must agree in to be of one model. Vocabulary and tied weights are the checkpoint's: NeMo's
recipes of Qwen2.5's small models have untied ones, which the released models have not."""


def recipe_of(model: Path, *, nodes: int, gpus_per_node: int, lora: bool) -> Any:
    """NeMo's fine-tuning recipe for the model of a directory of NeMo 2: its own where there is one, else the default.

    Every field that the checkpoint's context gives, it has in the result.
    """
    from nemo.collections.llm.recipes.finetune_default import default_finetune_recipe

    own = model_of(model)
    name = find_recipe(own.config)
    scheme = "lora" if lora else None
    if name is None:
        recipe = default_finetune_recipe(own, str(model), num_nodes=nodes, num_gpus_per_node=gpus_per_node)
        recipe.model = own
        if lora:
            import nemo_run
            from nemo.collections.llm.peft import LoRA

            recipe.peft = nemo_run.Config(LoRA)
        return recipe
    module = import_module(f"nemo.collections.llm.recipes.{name}")
    recipe = module.finetune_recipe(num_nodes=nodes, num_gpus_per_node=gpus_per_node, peft_scheme=scheme)
    for key, value in own.config.__arguments__.items():
        setattr(recipe.model.config, key, value)
    if "tokenizer" in own.__arguments__:
        recipe.model.tokenizer = own.tokenizer
    return recipe


def find_recipe(config: Any) -> str | None:
    """The name of NeMo's recipe for a configuration's shape; None where it has none."""
    import fiddle

    kind, shape = fiddle.get_callable(config), _shape(config)
    for name in RECIPES:
        theirs = import_module(f"nemo.collections.llm.recipes.{name}").model().config
        cls = fiddle.get_callable(theirs)
        if issubclass(cls, kind) and _shape(theirs) == shape:
            return name
    return None


def _shape(config: Any) -> tuple[Any, ...]:
    """The fields that decide, with megatron-core's own defaults filled in, and whether Llama 3's rope is scaled."""
    found: dict[str, Any] = {name: getattr(config, name, None) for name in _SHAPE}
    heads = found["num_attention_heads"]
    found["num_query_groups"] = found["num_query_groups"] or heads
    found["kv_channels"] = found["kv_channels"] or found["hidden_size"] // heads
    return tuple(found.values())


def model_of(directory: Path) -> Any:
    """The model that a directory of NeMo 2 describes, as a nemo_run.Config."""
    import fiddle
    import nemo_run
    from nemo.lightning import io
    from nemo.lightning.ckpt_utils import ckpt_to_context_subdir

    context = io.load_context(ckpt_to_context_subdir(directory), subpath="model", build=False)

    def as_run(value: Any) -> Any:
        if isinstance(value, fiddle.Config):
            arguments = {key: as_run(item) for key, item in value.__arguments__.items()}
            return nemo_run.Config(fiddle.get_callable(value), **arguments)
        return value

    return as_run(context)


def apply_options(model: Any, engine: NeMoEngine, data: Any, trained: bool = True) -> None:
    """Put the engine's options into a model's configuration.

    With traces alone the loss is averaged over all tokens of the step (`calculate_per_token_loss`), as transformers and
    TRL do; NeMo demands it with context parallelism, where a GPU may hold no token that is learned.

    Args:
        trained: false for a teacher, which keeps nothing for a backward pass.
    """
    from megatron.core.transformer.enums import AttnBackend
    from nemo.collections.llm.gpt.model.base import local_layer_spec, transformer_engine_layer_spec

    config = model.config
    local = engine.layer_spec == "local"
    config.transformer_layer_spec = local_layer_spec if local else transformer_engine_layer_spec
    config.attention_backend = AttnBackend[engine.attention_backend]
    config.calculate_per_token_loss = engine.distillation is None
    length = engine.sequence_length or getattr(data, "seq_length", None)
    if length is not None:
        config.seq_length = length
    for name, field in FUSIONS.items():
        asked = getattr(engine.fusions, name)
        if asked is not None or local:
            setattr(config, field, bool(asked))
    for key, value in (recompute_fields(engine.recompute) if trained else {}).items():
        setattr(config, key, value)
