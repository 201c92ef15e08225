"""Our tokens as Megatron-Bridge's training data: a DatasetProvider over global batches. `training` calls it."""

from dataclasses import dataclass
from typing import Any

from recipes.engines.megatron.batches import Batches, Sample, collate
from recipes.engines.megatron_bridge.options import MegatronBridgeEngine


@dataclass(frozen=True, eq=False)
class Sequences:
    """The sequences of some batches, in the order in which Bridge's sampler deals them out to the copies of a model.

    It gives every copy each n-th sequence of a global batch, and cuts that into micro-batches; here each micro-batch is
    a run of sequences, as with NeMo's sampler, so that both engines train the same rows on the same GPU.
    """

    batches: Batches
    copies: int
    """Of the model (data parallelism)."""
    micro_batch_size: int
    mask: bool
    """See `collate`."""

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Sample:
        """The sequence that Bridge's sampler calls by this number."""
        batch, place = divmod(index, self.batches.size)
        turn, copy = divmod(place, self.copies)
        micro, within = divmod(turn, self.micro_batch_size)
        place = (micro * self.copies + copy) * self.micro_batch_size + within
        return self.batches[batch * self.batches.size + place]

    def collate_fn(self, samples: list[Sample]) -> dict[str, Any]:
        """Stack all that one copy takes of a global batch; Bridge divides it into micro-batches."""
        return collate(samples, mask=self.mask) if "boundaries" not in samples[0] else _collate_packs(samples)


def tokens_provider(training: Batches, held_out: Batches | None, engine: MegatronBridgeEngine, copies: int) -> Any:
    """What Bridge's configuration takes as `dataset`; where to go on after a resume, Bridge's sampler knows.

    Args:
        held_out: what is validated on; None for nothing.
        copies: of the model, each of which takes its part of every batch.
    """
    from megatron.bridge.training.config import DatasetProvider

    local = engine.layer_spec == "local"

    def sequences(batches: Batches) -> Sequences:
        return Sequences(batches, copies, engine.micro_batch_size, mask=local)

    class TokensProvider(DatasetProvider):  # type: ignore[misc]
        """See tokens_provider."""

        skip_getting_attention_mask_from_dataset = not local

        def build_datasets(self, context: Any) -> tuple[Any, Any, None]:
            return sequences(training), None if held_out is None else sequences(held_out), None

        def to_cfg_dict(self) -> dict[str, Any]:
            """Nothing for the run_config.yaml of a checkpoint: nobody makes these batches from there."""
            return {}

    # Whole global batches, because all sequences of one have its length; the rows are in the memory already.
    return TokensProvider(dataloader_type="batch", num_workers=0)


def _collate_packs(samples: list[Sample]) -> dict[str, Any]:
    """Stack packs, whose lists of boundaries differ in length; Bridge cuts each off at its own end."""
    import torch

    packs = [collate([sample], mask=False) for sample in samples]
    longest = max(pack["cu_seqlens"].shape[1] for pack in packs)
    for pack in packs:
        missing = longest - pack["cu_seqlens"].shape[1]
        pack["cu_seqlens"] = torch.nn.functional.pad(pack["cu_seqlens"], (0, missing), value=-1)
    return {key: torch.cat([pack[key] for pack in packs]) for key in packs[0] if key != "attention_mask"}
