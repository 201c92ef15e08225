"""The options of the `nemo` engine: those of every engine on Megatron-core, and what NeMo 2.7 refuses beside them."""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from recipes.engines.megatron.options import MegatronEngine
from recipes.preflight.layout import Core


class NeMoEngine(MegatronEngine):
    """Train with NeMo 2 on Megatron-core: on our traces (`llm.finetune`), or on a teacher's logits (`llm.distill`)."""

    needs: ClassVar[tuple[str, ...]] = ("nemo", "nemo_run", "megatron.core", "lightning", "torch", "pyarrow")
    environment: ClassVar[str] = "nemo"
    directory: ClassVar[Literal["nemo", "bridge"]] = "nemo"
    core: ClassVar[Core] = "0.15"

    type: Literal["nemo"] = "nemo"

    @model_validator(mode="after")
    def _check_adapters(self) -> Self:
        if self.lora is not None and self.layer_spec == "local":
            raise ValueError(
                "lora is given, but layer_spec is local, and NeMo's adapters ask for Transformer Engine; "
                "set layer_spec: te, or leave lora out"
            )
        return self
