"""What an engine on Megatron-core computes in, and what it keeps of the forward pass: two choices of its options.

The names of the precisions are those of `recipes.preflight.parallelism.Precision`, so that preflight judges them as
they are. FP8 is Transformer Engine's: each engine's `configuration` puts these fields into NeMo's
MegatronMixedPrecision or Bridge's MixedPrecisionConfig, which has the same recipes as NeMo.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from reasonforge.config import Operational, Strict


class FP32(Strict):
    """32 bits throughout; for tests and the CPU."""

    type: Literal["fp32"] = "fp32"


class BF16(Strict):
    """bf16 weights and products over the optimizer's fp32 weights (NeMo's `bf16_mixed`)."""

    type: Literal["bf16"] = "bf16"
    gradients_fp32: bool = True
    """Whether gradients are summed over micro-batches and GPUs in 32 bits (`grad_reduce_in_fp32`); both's default."""


class _FP8(BF16):
    """What Transformer Engine's FP8 recipes have in common."""

    format: Literal["hybrid", "e4m3"] = "hybrid"
    """E4M3 throughout, or hybrid: E5M2 for the gradients of activations, whose range is wider (`fp8`). Micikevicius et
    al. 2022, arXiv 2209.05433, section 3."""
    fp8_parameters: bool = True
    """Whether the matrices are kept in FP8 beside the optimizer's fp32 copy, and gathered so (`fp8_param_gather`,
    which both copy into `fp8_param`)."""


class _Scaled(_FP8):
    """FP8 recipes that can leave some layers in bf16; those with delayed scaling cannot (TransformerConfig)."""

    first_layers_bf16: int = Field(0, ge=0)
    """Layers at the start that stay in bf16 (`num_layers_at_start_in_bf16`)."""
    last_layers_bf16: int = Field(0, ge=0)
    """Layers at the end that stay in bf16 (`num_layers_at_end_in_bf16`)."""


class FP8Delayed(_FP8):
    """Scaling by the largest values of earlier steps: Transformer Engine's DelayedScaling.

    NeMo's `bf16_with_fp8_mixed`. Two of its keys are left out, because Transformer Engine takes them and does nothing:
    `fp8_interval` since 1.8, `fp8_wgrad` since 2.0 (DelayedScaling has no `override_linear_precision` any more).
    """

    type: Literal["fp8-delayed"] = "fp8-delayed"  # type: ignore[assignment]
    margin: int = Field(0, ge=0)
    """Powers of two that the scale stays below the largest (`fp8_margin`)."""
    amax_history: int = Field(1024, ge=1)
    """Steps whose largest values are remembered (`fp8_amax_history_len`)."""
    amax_algorithm: Literal["max", "most_recent"] = "max"
    """Which of the remembered values scales (`fp8_amax_compute_algo`)."""
    attention: bool = False
    """Whether the attention's products are in FP8 (`fp8_dot_product_attention`); needs attention_backend fused."""
    multi_head_attention: bool = False
    """Whether the attention also takes and gives FP8 tensors (`fp8_multi_head_attention`); needs `attention`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.multi_head_attention and not self.attention:
            raise ValueError(
                "multi_head_attention is true, but attention is false, and then nothing computes in the FP8 that it "
                "passes on; set attention: true"
            )
        return self


class FP8Current(_Scaled):
    """Scaling of each tensor by its own largest value: Float8CurrentScaling.

    NeMo's `bf16_with_fp8_current_scaling_mixed`, which keeps the first and the last layer in bf16.
    """

    type: Literal["fp8-current"] = "fp8-current"  # type: ignore[assignment]
    first_layers_bf16: int = Field(1, ge=0)
    """Layers at the start that stay in bf16 (`num_layers_at_start_in_bf16`)."""
    last_layers_bf16: int = Field(1, ge=0)
    """Layers at the end that stay in bf16 (`num_layers_at_end_in_bf16`)."""
    attention: bool = False
    """Whether the attention's products are in FP8 (`fp8_dot_product_attention`); needs attention_backend fused."""


class FP8Blockwise(_Scaled):
    """Scaling of blocks of 128 × 128 (weights) and 1 × 128 (activations): Float8BlockScaling.

    NeMo's `bf16_with_fp8_subchannel_scaling_mixed`; DeepSeek-V3, arXiv 2412.19437, section 3.3.
    """

    type: Literal["fp8-blockwise"] = "fp8-blockwise"  # type: ignore[assignment]
    fp8_parameters: bool = False
    """Whether the matrices are kept and gathered in FP8 (`fp8_param_gather`); NeMo's recipe does not."""


class MXFP8(_Scaled):
    """Scaling of blocks of 32 by powers of two: MXFP8BlockScaling. Blackwell GPUs only.

    NeMo's `bf16_with_mxfp8_mixed`; Rouhani et al. 2023, arXiv 2310.10537. With `fp8_parameters` the gradients' buffer
    serves to gather the weights (`reuse_grad_buf_for_mxfp8_param_ag`), as in NeMo's recipe and megatron-core's advice.
    """

    type: Literal["mxfp8"] = "mxfp8"  # type: ignore[assignment]
    format: Literal["hybrid", "e4m3"] = "e4m3"
    """As the others'; NeMo's recipe takes E4M3 throughout (`fp8`)."""


AnyPrecision = Annotated[
    FP32 | BF16 | FP8Delayed | FP8Current | FP8Blockwise | MXFP8,
    Field(discriminator="type"),
]


class KeepAll(Strict):
    """Keep what the backward pass needs."""

    type: Literal["none"] = "none"


class RecomputeSelective(Strict):
    """Compute some modules of each layer again. Korthikanti et al. 2022, arXiv 2205.05198, section 5."""

    type: Literal["selective"] = "selective"
    modules: tuple[Literal["core_attn", "layernorm", "mlp", "moe", "moe_act"], ...] = Field(
        ("core_attn",), min_length=1, strict=False
    )
    """Which (`recompute_modules`): the attention's products, the norms, the feed-forward, the experts, or only the
    experts' activation function."""


class RecomputeFull(Strict):
    """Compute whole layers again, from their inputs."""

    type: Literal["full"] = "full"
    method: Literal["uniform", "block"] = "uniform"
    """All layers in chunks of `layers`, or only `layers` layers of each pipeline stage, until memory suffices
    (`recompute_method`)."""
    layers: int = Field(1, ge=1)
    """See `method` (`recompute_num_layers`)."""


Recompute = Annotated[KeepAll | RecomputeSelective | RecomputeFull, Operational(), Field(discriminator="type")]


def is_fp8(precision: Any) -> bool:
    """Whether Transformer Engine computes the linear layers in 8 bits."""
    return isinstance(precision, _FP8)


def recompute_fields(recompute: Any) -> dict[str, Any]:
    """megatron-core's four fields of recomputation."""
    chosen = recompute if isinstance(recompute, RecomputeFull) else None
    return {
        "recompute_granularity": None if isinstance(recompute, KeepAll) else recompute.type,
        "recompute_modules": list(recompute.modules) if isinstance(recompute, RecomputeSelective) else None,
        "recompute_method": chosen and chosen.method,
        "recompute_num_layers": chosen and chosen.layers,
    }


_CORE_NAMES = {
    "fp8-delayed": "delayed", "fp8-current": "tensorwise", "fp8-blockwise": "blockwise", "mxfp8": "mxfp8",
}  # fmt: skip


def core_fields(precision: BF16) -> dict[str, Any]:
    """A precision's fields by megatron-core's names, which NeMo's plugin and Bridge's configuration both have."""
    found: dict[str, Any] = {"grad_reduce_in_fp32": precision.gradients_fp32}
    if not isinstance(precision, _FP8):
        return found
    found |= {
        "fp8_recipe": _CORE_NAMES[precision.type],
        "fp8": precision.format,
        "fp8_param_gather": precision.fp8_parameters,
    }
    if isinstance(precision, FP8Delayed):
        found |= {
            "fp8_margin": precision.margin,
            "fp8_amax_history_len": precision.amax_history,
            "fp8_amax_compute_algo": precision.amax_algorithm,
            "fp8_multi_head_attention": precision.multi_head_attention,
        }
    if isinstance(precision, FP8Delayed | FP8Current):
        found["fp8_dot_product_attention"] = precision.attention
    if isinstance(precision, _Scaled):
        found |= {
            "first_last_layers_bf16": precision.first_layers_bf16 + precision.last_layers_bf16 > 0,
            "num_layers_at_start_in_bf16": precision.first_layers_bf16,
            "num_layers_at_end_in_bf16": precision.last_layers_bf16,
        }
    if isinstance(precision, MXFP8):
        found["reuse_grad_buf_for_mxfp8_param_ag"] = precision.fp8_parameters
    return found
