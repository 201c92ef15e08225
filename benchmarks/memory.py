"""`python -m benchmarks.memory`: preflight's memory estimates beside figures that others published, as Markdown.

Nothing is measured here: the figures were read from the sources that each line names. "allocated" is what
torch.cuda.max_memory_allocated showed, compared with our components without allowances; "device" is what the GPU had
handed out (nvidia-smi or torch's reserved), compared with our total; "fits" is a GPU on which the layout is known to
run, where ours must come out no larger; "computed" is another formula's result;
"assumed" rests on a length that the source does not give, and shows little.
"""

from dataclasses import dataclass
from typing import Any, Literal

from checkpoints_conversion.spec import ModelSpec
from recipes.preflight.memory import Training, stage_memory, training_memory
from recipes.preflight.parallelism import Batch, Parallelism, Precision
from recipes.preflight.serving import cache_per_token, serving_memory
from recipes.preflight.shape import parameters
from recipes.preflight.table import GIB

H100 = 80 * GIB


def shape(model_type: str, **sizes: Any) -> ModelSpec:
    """A model's shape, with what does not matter to memory filled in."""
    rest: dict[str, Any] = {"norm_epsilon": 1e-5, "rope_theta": 1e6, "architecture": "", "tied": False, "head_dim": 128}
    return ModelSpec(model_type=model_type, **{**rest, "positions": 131072, **sizes})


LLAMA_8B = shape("llama", layers=32, hidden=4096, heads=32, groups=8, ffn=14336, vocabulary=128256)
LLAMA_70B = shape("llama", layers=80, hidden=8192, heads=64, groups=8, ffn=28672, vocabulary=128256)
QWEN_7B = shape("qwen2", layers=28, hidden=3584, heads=28, groups=4, ffn=18944, vocabulary=152064)
QWEN_14B = shape("qwen2", layers=48, hidden=5120, heads=40, groups=8, ffn=13824, vocabulary=152064)
QWEN3_8B = shape("qwen3", layers=36, hidden=4096, heads=32, groups=8, ffn=12288, vocabulary=151936)
QWEN3_30B = shape("qwen3_moe", layers=48, hidden=2048, heads=32, groups=4, ffn=6144, vocabulary=151936,
                  experts=128, experts_per_token=8, expert_ffn=768)  # fmt: skip
QWEN3_235B = shape("qwen3_moe", layers=94, hidden=4096, heads=64, groups=4, ffn=12288, vocabulary=151936,
                   experts=128, experts_per_token=8, expert_ffn=1536)  # fmt: skip
MIXTRAL = shape("mixtral", layers=32, hidden=4096, heads=32, groups=8, ffn=14336, vocabulary=32000,
                experts=8, experts_per_token=2, expert_ffn=14336)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A published figure and ours."""

    what: str
    kind: Literal["allocated", "device", "fits", "computed", "assumed"]
    published: float
    """GiB, but for counts."""
    ours: float
    source: str
    unit: str = "GiB"

    @property
    def ratio(self) -> float:
        """Ours over theirs."""
        return self.ours / self.published


@dataclass(frozen=True)
class Run:
    """A training that someone ran."""

    model: ModelSpec
    layout: Parallelism
    batch: Batch
    gpus: int
    precision: Precision = "bf16"
    training: Training = Training()  # noqa: RUF009 (frozen)
    stage: int | None = None

    def gib(self, allocated: bool) -> float:
        """Ours: of one stage, or of the fullest."""
        common = (self.model, self.layout, self.batch, self.gpus, self.precision, self.training, H100)
        table = training_memory(*common) if self.stage is None else stage_memory(*common, self.stage)
        return (table.allocated if allocated else table.total) / GIB


def main() -> None:
    """Print the table."""
    print("| what | published | ours | ours/published | kind | source |\n|---|---|---|---|---|---|")
    for figure in figures():
        numbers = f"{figure.published:,.6g} {figure.unit} | {figure.ours:,.6g} | {figure.ratio:.3f}"
        print(f"| {figure.what} | {numbers} | {figure.kind} | {figure.source} |")


def figures() -> list[Figure]:
    """All of them."""
    return [*counts(), *trainings(), *short_answers(), *known_to_run(), *servers()]


def counts() -> list[Figure]:
    """Parameters, exactly."""
    known = {"Llama-3-8B": (LLAMA_8B, 8_030_261_248), "Llama-3-70B": (LLAMA_70B, 70_553_706_496),
             "Qwen2.5-7B": (QWEN_7B, 7_615_616_512), "Qwen3-30B-A3B": (QWEN3_30B, 30_532_122_624)}  # fmt: skip
    source = "the models' cards"
    return [
        Figure(f"{name} parameters", "computed", count, parameters(model), source, "parameters")
        for name, (model, count) in known.items()
    ]


def trainings() -> list[Figure]:
    """Trainings on megatron-core whose peak was published."""
    swift = "ms-swift examples/train/megatron/"
    bridge = "Megatron-Bridge skills/nemo-mbridge-perf-memory-tuning, 32×H100 (pull request 3107)"
    full, selective = Training(recompute="full"), Training()
    seventy = Training(gradient_bytes=2, fp8_weights=True, fp8_cache=False)
    long = Run(QWEN_7B, tp(4), Batch(sequence_length=32768, global_=8), 4, training=full)
    fourteen = Batch(sequence_length=8192, global_=16)
    moe = tp(2, expert=8, expert_tensor=1)
    eager = Training(recompute="none")
    # Inferred: 64 GPUs, from the golden file's mem-allocated-bytes (18.4 GiB; we count 17.4, 25.6 on 32 GPUs).
    rows: list[tuple[str, Literal["allocated", "device"], float, Run, str]] = [
        ("Qwen2.5-7B, TP4 SP, 32k tokens, full recomputation", "device", gib(50), long, swift + "long_text.sh"),
        ("Qwen2.5-14B, TP4 SP DP2, 8k", "device", 68, Run(QWEN_14B, tp(4), fourteen, 8, training=selective),
         swift + "fp8.sh"),
        ("Qwen2.5-14B, TP4 SP DP2, 8k, FP8 weights", "device", 68,
         Run(QWEN_14B, tp(4), fourteen, 8, "fp8-delayed", Training(fp8_weights=True)), swift + "fp8.sh"),
        ("Qwen3-30B-A3B, TP2 EP8 on 16 GPUs, 8k, full recomputation", "device", 60,
         Run(QWEN3_30B, moe, fourteen, 16, training=full), swift + "qwen3_moe.sh"),
        ("Llama-3-70B SFT, TP4 PP4 VPP5 DP2, FP8, 4k", "allocated", gib(58.8),
         Run(LLAMA_70B, tp(4, pipeline=4, virtual_pipeline=5), llama_70b_batch(), 32, "fp8-current", seventy), bridge),
        ("Llama-3-70B SFT, TP4 PP8 VPP5, FP8, 4k", "allocated", gib(53.2),
         Run(LLAMA_70B, tp(4, pipeline=8, virtual_pipeline=5), llama_70b_batch(), 32, "fp8-current", seventy), bridge),
        ("Llama-3-70B SFT, TP8 PP4 VPP5, FP8, 4k", "allocated", gib(50.2),
         Run(LLAMA_70B, tp(8, pipeline=4, virtual_pipeline=5), llama_70b_batch(), 32, "fp8-current", seventy), bridge),
        ("Mixtral 8x7B, TP2 PP4 VPP8 EP8 ETP1, last stage, 4k, 64 GPUs inferred", "allocated", gib(35.505844224),
         Run(MIXTRAL, tp(2, pipeline=4, virtual_pipeline=8, expert=8, expert_tensor=1),
             Batch(sequence_length=4096, global_=256), 64, training=eager, stage=3),
         "Megatron-LM tests/functional_tests/…/mixtral_8x7b_tp1pp4ep8vpp8_release/golden_values_dev_dgx_h100.json"),
    ]  # fmt: skip
    return [
        Figure(what, kind, theirs, run.gib(kind == "allocated"), source) for what, kind, theirs, run, source in rows
    ]


def short_answers(tokens: int = 512) -> list[Figure]:
    """Two runs whose sequences were short, but nobody said how short; 2,048 tokens were the most."""
    batch = Batch(sequence_length=tokens, micro=16, global_=16)
    source = "ms-swift examples/train/megatron/lora/dense.sh"
    runs = {
        "full": (70, Run(QWEN_7B, tp(2), batch, 2, training=Training(recompute="full"))),
        "LoRA 8": (14, Run(QWEN_7B, tp(2), batch, 2, training=Training(recompute="full", lora_rank=8))),
    }
    return [
        Figure(f"Qwen2.5-7B {how}, TP2 SP, if {tokens} tokens", "assumed", theirs, run.gib(False), source)
        for how, (theirs, run) in runs.items()
    ]


def known_to_run() -> list[Figure]:
    """NVIDIA's own settings for H100s of 80 GB: ours must fit too."""
    source = "Megatron-Bridge src/megatron/bridge/perf_recipes/llama/h100/llama3.py"
    eight, four = Batch(sequence_length=8192, global_=128), Batch(sequence_length=4096, global_=32)
    short = Training(recompute="none", gradient_bytes=2)
    runs = {
        "Llama-3-8B, CP2 on 8 GPUs, 8k": Run(LLAMA_8B, Parallelism(context=2), eight, 8, training=short),
        "Llama-3-8B SFT on 8 GPUs, 4k": Run(LLAMA_8B, Parallelism(), four, 8, training=short),
        "Llama-3-70B, TP4 PP4 VPP5 CP2 on 64 GPUs, 8k": Run(
            LLAMA_70B, tp(4, pipeline=4, virtual_pipeline=5, context=2),
            Batch(sequence_length=8192, global_=256), 64, training=short,
        ),
        "Llama-3-70B SFT, TP4 PP4 VPP5 on 32 GPUs, 4k": Run(
            LLAMA_70B, tp(4, pipeline=4, virtual_pipeline=5), llama_70b_batch(), 32, training=short
        ),
    }  # fmt: skip
    return [Figure(what, "fits", 80, run.gib(allocated=False), source) for what, run in runs.items()]


def servers() -> list[Figure]:
    """vLLM's logs, and tables of cache sizes."""
    blog = "huggingface/blog llama31.md, KV cache in FP16 (issue 2345)"
    vllm = "vllm-project/vllm issue "
    qwen = cache_per_token(QWEN3_235B, 4)
    return [
        Figure("Llama-3.1-8B cache of 16,000 tokens", "computed", 1.95, 16_000 * cache_per_token(LLAMA_8B) / GIB, blog),
        Figure("Llama-3.1-70B cache of 128,000 tokens", "computed", 39.06, 128_000 * cache_per_token(LLAMA_70B) / GIB,
               blog),
        Figure("Qwen3-235B-A22B, TP4: tokens in 8.11 GiB of cache", "device", 178_880, 8.11 * GIB / qwen,
               vllm + "21348", "tokens"),
        Figure("Qwen2.5-14B shape, TP2: weights on each GPU", "allocated", 13.9476,
               serving_memory(QWEN_14B, 24 * GIB, tensor=2).table.bytes_of("weights") / GIB, vllm + "13061"),
    ]  # fmt: skip


def tp(tensor: int, **others: Any) -> Parallelism:
    """Tensor with sequence parallelism."""
    return Parallelism(tensor=tensor, sequence_parallel=True, **others)


def llama_70b_batch() -> Batch:
    """The batch of NVIDIA's Llama-3-70B SFT."""
    return Batch(sequence_length=4096, global_=32)


def gib(gigabytes: float) -> float:
    """Decimal gigabytes in GiB."""
    return gigabytes * 1e9 / GIB


if __name__ == "__main__":
    main()
