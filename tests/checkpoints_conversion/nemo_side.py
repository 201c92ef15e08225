"""The real NeMo 2 on the CPU: run by `NEMO_PYTHON`, an interpreter that has nemo_toolkit (`make nemo-env`).

    nemo_side.py JOB.json

One process does everything that test_nemo.py asks for, because importing NeMo takes most of the time:

    imports    Hugging Face directories by name: `llm.import_ckpt` of each, into OUT/imported/NAME
    finetunes  directories by name: `llm.finetune` from each as a restore path, with a learning rate of 0;
               the logits before the first step into OUT/NAME.pt, NeMo's own checkpoint into OUT/trained/NAME

and what `load_context` makes of all those directories, by name, into OUT/contexts.json.

`nemo_cpu` makes NeMo, which thinks that it has a GPU, work without one; it is for tests only.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from nemo_cpu import pretend


def describe(directory: Path, text: str) -> dict[str, Any]:
    """What NeMo builds from a context: the configuration's fields, the tokenizer at work, the model's class."""
    from nemo.lightning import io

    config = io.load_context(directory / "context", subpath="model.config")
    context = io.load_context(directory / "context")
    ids = context.model.tokenizer.text_to_ids(text)
    fields = {field.name: told(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return {
        "config": type(config).__name__,
        "model": type(context.model).__name__,
        "trainer": type(context.trainer).__name__,
        "fields": fields,
        "tokens": ids,
    }


def told(value: Any) -> Any:
    """A field as JSON; a function by its name, since each building makes its own."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return getattr(value, "__qualname__", None) or str(value)


def import_as_nemo_does(source: str, destination: Path) -> None:
    """`llm.import_ckpt`; its maps name modules of Transformer Engine, so two names are put into the local ones."""
    from nemo.collections import llm
    from nemo.lightning import io

    transform = io.apply_transforms
    local = {
        "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
        "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
    }

    def with_local_names(source: Any, target: Any, mapping: dict[str, str], transforms: Any) -> Any:
        for fused, alone in local.items():
            mapping = {key: name.replace(fused, alone) for key, name in mapping.items()}
        return transform(source, target, mapping, transforms)

    model_type = json.loads((Path(source) / "config.json").read_text())["model_type"]
    models = {
        "llama": (llm.LlamaModel, llm.Llama32Config1B),
        "qwen2": (llm.Qwen2Model, llm.Qwen25Config500M),
        "qwen3": (llm.Qwen3Model, llm.Qwen3Config600M),
    }
    model, config = models[model_type]
    io.apply_transforms = with_local_names
    try:
        llm.import_ckpt(model(config()), f"hf://{source}", output_path=destination)
    finally:
        io.apply_transforms = transform


def finetune(directory: Path, data: Path, out: Path, name: str) -> None:
    """`llm.finetune` for two steps from a restore path, all weights unchanged by them."""
    import torch
    from megatron.core.optimizer import OptimizerConfig
    from nemo import lightning as nl
    from nemo.collections import llm
    from nemo.lightning import io

    def keep_logits() -> None:
        tokens = torch.arange(2 * 24).reshape(2, 24) * 7 % 100
        positions = torch.arange(24).expand_as(tokens)
        mask = torch.triu(torch.ones(24, 24, dtype=torch.bool), 1)[None, None]
        with torch.no_grad():
            torch.save(model(tokens, positions, mask).float().clone(), out / f"{name}.pt")

    model = io.load_context(directory / "context", subpath="model")
    model.on_train_start = keep_logits
    trainer = nl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=2,
        limit_val_batches=0,
        val_check_interval=2,
        log_every_n_steps=1,
        enable_progress_bar=False,
        plugins=nl.MegatronMixedPrecision(precision="bf16-mixed") if model.config.bf16 else None,
        strategy=nl.MegatronStrategy(ckpt_async_save=False),
    )
    llm.finetune(
        model=model,
        data=llm.FineTuningDataModule(
            dataset_root=data,
            seq_length=32,
            micro_batch_size=1,
            global_batch_size=1,
            num_workers=0,
            dataset_kwargs={"get_attention_mask_from_fusion": False},
        ),
        trainer=trainer,
        log=nl.NeMoLogger(
            log_dir=str(out / "logs" / name), ckpt=nl.ModelCheckpoint(save_last=True, every_n_train_steps=2)
        ),
        resume=nl.AutoResume(restore_config=nl.RestoreConfig(path=str(directory))),
        optim=nl.MegatronOptimizerModule(OptimizerConfig(optimizer="adam", lr=0.0, use_distributed_optimizer=True)),
    )
    (last,) = (out / "logs" / name).rglob("*-last")
    last.rename(out / "trained" / name)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    out = Path(job["out"])
    pretend()
    (out / "trained").mkdir(parents=True)
    contexts = {}
    for name, source in job["imports"].items():
        import_as_nemo_does(source, out / "imported" / name)
        contexts[f"imported-{name}"] = out / "imported" / name
    for name, directory in job["finetunes"].items():
        finetune(Path(directory), Path(job["data"]), out, name)
        contexts[name] = Path(directory)
        contexts[f"trained-{name}"] = out / "trained" / name
    found = {name: describe(directory, job["text"]) for name, directory in contexts.items()}
    (out / "contexts.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
