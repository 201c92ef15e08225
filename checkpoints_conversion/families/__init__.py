"""The families that convert. A new one is a small file beside these, and its name in `FAMILIES`."""

from pathlib import Path

from checkpoints_conversion.families.llama import LLAMA
from checkpoints_conversion.families.qwen2 import QWEN2
from checkpoints_conversion.families.qwen3 import QWEN3
from checkpoints_conversion.families.qwen3_moe import QWEN3_MOE
from checkpoints_conversion.families.table import Family
from checkpoints_conversion.spec import ModelSpec
from reasonforge.errors import RequestError, nearest

FAMILIES = {family.model_type: family for family in (LLAMA, QWEN2, QWEN3, QWEN3_MOE)}


def family_of(spec: ModelSpec, config: Path) -> Family:
    """The family of a model. Raises RequestError, naming its config.json, where there is none."""
    if spec.model_type not in FAMILIES:
        raise RequestError(
            f"{config}: model_type", f"no map for {spec.model_type!r}", nearest(spec.model_type, FAMILIES)
        )
    return FAMILIES[spec.model_type]
