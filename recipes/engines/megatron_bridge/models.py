"""The model's configuration: what a directory of Bridge says of itself, with the engine's options laid over it.
`configuration` calls it, in Bridge's environment.
"""

from pathlib import Path
from typing import Any

from checkpoints_conversion.megatron import CARRIED
from reasonforge.errors import RequestError
from recipes.engines.megatron.options import FUSIONS
from recipes.engines.megatron.precision import recompute_fields
from recipes.engines.megatron_bridge.options import MegatronBridgeEngine

RUN_CONFIG = "run_config.yaml"


def weights_of(directory: Path) -> Path:
    """The last iteration of a directory of Bridge, where run_config.yaml lies. Raises RequestError without any."""
    found = sorted(directory.glob(f"iter_*/{RUN_CONFIG}"))
    if not found:
        raise RequestError(
            str(directory),
            f"no iter_*/{RUN_CONFIG}, so no directory of Megatron-Bridge",
            "set directory: bridge in the import_checkpoint stage",
        )
    return found[-1].parent


def provider_of(directory: Path, engine: MegatronBridgeEngine, sequence_length: int, trained: bool = True) -> Any:
    """The model that a directory of Bridge describes, as Bridge's GPTModelProvider, with the engine's options in it.

    Args:
        sequence_length: of the longest sequence that it gets.
        trained: false for a teacher, which keeps nothing for a backward pass.
    """
    from megatron.bridge.training.model_load_save import load_model_config

    provider, _ = load_model_config(str(weights_of(directory)))
    _keep_vocabulary(provider)
    _set_fusions(provider, directory, engine)
    _set_layers(provider, engine)
    _set_parallelism(provider, engine)
    provider.seq_length = sequence_length
    # The loss is averaged over all tokens of the step, as transformers and TRL do; Bridge's losses come as sums, that
    # of ModelOpt too.
    provider.calculate_per_token_loss = True
    for key, value in (recompute_fields(engine.recompute) if trained else {}).items():
        setattr(provider, key, value)
    return provider


def _keep_vocabulary(provider: Any) -> None:
    """Give the model the rows that its checkpoint has: Bridge pads no vocabulary whose size is given
    (`_validate_and_set_vocab_size` of training/setup.py), so that a padded checkpoint would not load."""
    from megatron.bridge.utils.vocab_utils import calculate_padded_vocab_size

    if provider.should_pad_vocab:
        provider.vocab_size = calculate_padded_vocab_size(
            provider.vocab_size, provider.make_vocab_size_divisible_by, 1, logging_enabled=False
        )
        provider.should_pad_vocab = False


def _set_fusions(provider: Any, directory: Path, engine: MegatronBridgeEngine) -> None:
    """The recipe's choice, or with Transformer Engine's layers Bridge's own for this family of models."""
    local = engine.layer_spec == "local"
    own = None if local else _own_choice(directory)
    for name, field in FUSIONS.items():
        asked = getattr(engine.fusions, name)
        if asked is not None or local:
            setattr(provider, field, bool(asked))
        elif own is not None:
            setattr(provider, field, getattr(own, field))


def _own_choice(directory: Path) -> Any:
    """What AutoBridge makes of the Hugging Face configuration that an import carries; None where none is carried."""
    from megatron.bridge import AutoBridge
    from transformers import AutoConfig

    carried = directory / CARRIED
    if not (carried / "config.json").exists():
        return None
    return AutoBridge.from_hf_config(AutoConfig.from_pretrained(carried)).to_megatron_provider(load_weights=False)


def _set_layers(provider: Any, engine: MegatronBridgeEngine) -> None:
    from megatron.bridge.models.gpt_provider import local_layer_spec, transformer_engine_layer_spec
    from megatron.core.transformer.enums import AttnBackend

    local = engine.layer_spec == "local"
    provider.transformer_layer_spec = local_layer_spec if local else transformer_engine_layer_spec
    provider.transformer_impl = "local" if local else "transformer_engine"
    provider.attention_backend = AttnBackend[engine.attention_backend]


def _set_parallelism(provider: Any, engine: MegatronBridgeEngine) -> None:
    layout = engine.parallelism
    provider.tensor_model_parallel_size = layout.tensor
    provider.pipeline_model_parallel_size = layout.pipeline
    provider.virtual_pipeline_model_parallel_size = layout.virtual_pipeline
    provider.context_parallel_size = layout.context
    provider.expert_model_parallel_size = layout.expert
    provider.expert_tensor_parallel_size = layout.expert_tensor
    provider.sequence_parallel = layout.sequence_parallel
