"""NeMo's side of test_nemo_configuration.py, run by the interpreter that has nemo_toolkit:

    nemo_configuration_side.py JOB.json ANSWER.json

For each of the job's `trainings` it builds the whole nemo-run Partial, trains nothing, and tells its keys; for those in
FP8 also what NeMo itself makes of them in the configurations of megatron-core's model, optimizer and DDP, and for
those over Transformer Engine's layers the size of a bucket, by one and by two copies of the model. For each of
`models`, the name of NeMo's own recipe for that shape.
"""

import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from recipes.engines.nemo.configuration import flatten, training_recipe
from recipes.engines.nemo.models import find_recipe, model_of
from recipes.engines.nemo.options import NeMoEngine


def answer(training: dict[str, Any], scratch: Path) -> dict[str, Any]:
    engine = NeMoEngine.model_validate(training["engine"])
    partial = training_recipe(
        engine,
        Path(training["model"]),
        gpus_per_node=training["gpus_per_node"],
        nodes=training["nodes"],
        scratch=scratch,
        data=None,
        teacher=Path(training["teacher"]) if training.get("teacher") else None,
    )
    found: dict[str, Any] = {"keys": flatten(partial)}
    if "fp8" in engine.precision.type:
        found["fp8"] = after_nemo(partial)
    if engine.layer_spec == "te":
        found["buckets"] = [bucket_size(partial, copies) for copies in (1, 2)]
    return found


def bucket_size(partial: Any, copies: int) -> int | None:
    """What NeMo's own callback gives to DDP, where so many copies of the model share the batches."""
    import fiddle
    from nemo.utils import AppState

    AppState().data_parallel_size = copies
    callback = fiddle.build(partial.trainer.callbacks[0])
    strategy = partial.trainer.strategy
    layout = SimpleNamespace(
        pipeline_model_parallel_size=strategy.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=strategy.virtual_pipeline_model_parallel_size,
    )
    return callback._get_optimizer_overlap_cfgs(layout).bucket_size


def after_nemo(partial: Any) -> dict[str, Any]:
    """The FP8 settings that MegatronStrategy.connect hands to megatron-core, by NeMo's own function."""
    import fiddle
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer.transformer_config import TransformerConfig
    from nemo.lightning.pytorch.plugins.mixed_precision import update_config_with_dtype_overrides

    dtypes = fiddle.build(partial.trainer.plugins).dtype_config
    config = partial.model.config
    made = {
        "model": TransformerConfig(
            num_layers=config.num_layers,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
        ),
        "optimizer": OptimizerConfig(),
        "ddp": DistributedDataParallelConfig(),
    }
    names = {field.name for field in fields(dtypes)}
    return {
        name: {
            key: value
            for key, value in asdict(update_config_with_dtype_overrides(dtypes, it)).items()
            if key in names and (value is None or isinstance(value, bool | int | str))
        }
        for name, it in made.items()
    }


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    found = {
        "trainings": {
            name: answer(training, Path(job["scratch"]) / name) for name, training in job["trainings"].items()
        },
        "models": {name: find_recipe(model_of(Path(path)).config) for name, path in job["models"].items()},
    }
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
