"""Our tokens as NeMo's training data: a LightningDataModule with Megatron's sampler over global batches.

`training` calls `tokens_module`.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from recipes.engines.megatron.batches import Batches, collate
from recipes.engines.nemo.options import NeMoEngine


def tokens_module(training: Batches, validation: Batches | None, engine: NeMoEngine) -> Any:
    """The data module over some batches, and over some for validation; it knows where to go on after a resume."""
    import lightning.pytorch as pl
    from nemo.lightning.data import WrappedDataLoader
    from nemo.lightning.pytorch.plugins import MegatronDataSampler

    class Sampler(MegatronDataSampler):  # type: ignore[misc]
        """Megatron's sampler, which tells each step how long its sequences are."""

        def on_megatron_step_start(self, step: Any) -> Any:
            length = training.batch_length(step.trainer.global_step)
            if step.forward_only and validation is not None:
                length = validation.batch_length(0)
            return replace(super().on_megatron_step_start(step), seq_length=length)

    class TokensModule(pl.LightningDataModule):  # type: ignore[misc]
        """See tokens_module."""

        def __init__(self) -> None:
            super().__init__()
            self.micro_batch_size, self.global_batch_size = engine.micro_batch_size, engine.batch_size
            self.seq_length = training.length or int(training.rows.lengths.max())
            self.tokenizer: Any = None
            self.data_sampler = Sampler(
                seq_len=self.seq_length,
                micro_batch_size=self.micro_batch_size,
                global_batch_size=self.global_batch_size,
                output_log=False,
            )

        def _loader(self, batches: Batches, mode: str) -> Any:
            return WrappedDataLoader(
                mode=mode,
                dataset=batches,
                num_workers=0,
                pin_memory=True,
                collate_fn=partial(collate, mask=engine.layer_spec == "local"),
            )

        def train_dataloader(self) -> Any:
            return self._loader(training, "train")

        def val_dataloader(self) -> Any:
            return self._loader(validation, "validation") if validation is not None else []

        def reconfigure_limit_batches(self) -> None:
            """Lightning counts micro-batches here; what is to be validated on is in `validation` alone."""
            if validation is not None:
                self.trainer.limit_val_batches = 1.0

        def state_dict(self) -> dict[str, Any]:
            return {"consumed_samples": self.trainer.global_step * self.global_batch_size}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.data_sampler.init_consumed_samples = state_dict["consumed_samples"]
            self.data_sampler.prev_consumed_samples = state_dict["consumed_samples"]
            self.data_sampler.init_global_step = state_dict["consumed_samples"] // self.global_batch_size
            self.data_sampler.if_first_step = 1

    return TokensModule()
