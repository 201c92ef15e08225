"""`python -m benchmarks.gpu_distill --out FILE.json`: distillation on one GPU, in bf16 and in FP8, beside transformers.

A Llama of random weights and traces of random words, as long as real ones, go the way of any recipe: they are
tokenized, imported, and trained on by a stage `distill` for each precision. Speed and memory are what metrics.jsonl
says, the first steps left out; the estimate beside them is preflight's. The peer is plain transformers with the same
model and rows: bf16 autocast over fp32 weights, SDPA, torch's AdamW, each row by itself and so without padding. Each
way is a process of its own, in the Python of the engine (`recipes.interpreters`: REASONFORGE_NEMO_PYTHON, else this
one). Exit code 2 where the machine cannot, 1 where a way failed.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu_distill_side import SHAPES
from reasonforge.errors import ReasonforgeError, RequestError, StageError
from reasonforge.files import read_json, read_jsonl, write_json
from reasonforge.processes import start_logged
from recipes.interpreters import interpreter, variables_for
from recipes.local import launch
from recipes.preflight.stages import needs
from recipes.preflight.table import GIB
from recipes.recipe import Recipe, load_recipe
from recipes.run_directory import RunDirectory

CAPABILITY = {"bf16": 8.0, "fp8-delayed": 8.9, "fp8-current": 8.9, "fp8-blockwise": 9.0, "mxfp8": 10.0}
"""The precisions that can be measured, with the compute capability that each takes."""

DIRECTORY = {"nemo": "nemo", "megatron_bridge": "bridge"}
"""The engines, and what they start from."""

UNKNOWN_GPU_GIB = 80.0
"""Of a GPU that torch says nothing of. The estimate does not depend on it."""

SETTINGS = ("engine", "layers", "size", "length", "batch", "steps", "warmup")
SHOWN = (
    "tokens_per_second",
    "over_peer",
    "mfu",
    "step_s",
    "memory_gib",
    "estimate_gib",
    "estimate_over_memory",
    "loss",
)

Figures = dict[str, Any]


def main() -> int:
    """Measure, print a table and write the JSON."""
    options = arguments()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            report = measure(options, (options.work or Path(temporary)).absolute())
    except ReasonforgeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    print(table(report))
    for precision, why in report["left_out"].items():
        print(f"{precision} is left out: {why}")
    if options.out:
        write_json(options.out, report)
    return 1 if any("error" in figures for figures in [*report["variants"].values(), report["peer"]]) else 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--engine", choices=DIRECTORY, default="nemo")
    parser.add_argument("--layers", choices=["te", "local"], default="te", help="Transformer Engine's or Megatron's")
    parser.add_argument("--precision", choices=CAPABILITY, nargs="+", default=[*CAPABILITY][:4])
    parser.add_argument("--size", choices=SHAPES, default="1b")
    parser.add_argument("--length", type=int, help="tokens of a pack and of the longest row; else 8192, tiny 128")
    parser.add_argument("--batch", type=int, default=8, help="sequences of a step")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=10, help="steps at the beginning that are left out")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the run here (20 GB for 1b); else it is deleted")
    parser.add_argument("--out", type=Path, metavar="FILE")
    options = parser.parse_args()
    options.length = options.length or (128 if options.size == "tiny" else 8192)
    if not 0 <= options.warmup < options.steps:
        parser.error(f"--warmup {options.warmup} leaves none of --steps {options.steps}")
    return options


def measure(options: argparse.Namespace, work: Path) -> Figures:
    """All figures. Raises RequestError where this machine cannot run any."""
    precisions = [it for it in options.precision if options.layers == "te" or it == "bf16"]
    if not precisions:
        raise RequestError("--precision", "FP8 is Transformer Engine's, and --layers is local", "take bf16")
    left_out = dict.fromkeys(options.precision, "FP8 is Transformer Engine's, and --layers is local")
    left_out = {name: why for name, why in left_out.items() if name not in precisions}
    settings = {name: getattr(options, name) for name in SETTINGS}
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / "settings.json", settings)
    write_json(work / "recipe.yaml", recipe_of(options, precisions, work))
    recipe, run = load_recipe(work / "recipe.yaml"), RunDirectory(work / "run")
    facts = beside("prepare", work, recipe)
    has = facts["device"]["compute_capability"]
    for name in precisions:
        if has and has < CAPABILITY[name]:
            left_out[name] = f"it takes compute capability {CAPABILITY[name]}, and this GPU has {has}"
    launch(run, recipe, [name for name in recipe.order() if name not in precisions], (), lambda _: None)
    chosen = [name for name in precisions if name not in left_out]
    variants = {name: train(name, run, recipe, options.warmup) for name in chosen}
    peer = train_peer(work, recipe)
    estimates = needs(recipe, dict.fromkeys(chosen, facts["device"]["memory_gib"] or UNKNOWN_GPU_GIB))
    for name, figures in variants.items():
        estimate = estimates[name].gpu
        compare(figures, peer, estimate.allocated / GIB if estimate else None)
    return {**facts, "settings": settings, "variants": variants, "peer": peer, "left_out": left_out}


def recipe_of(options: argparse.Namespace, precisions: list[str], work: Path) -> Figures:
    """The recipe, with a stage `distill` for each precision, which it is named after."""
    engine = {"type": options.engine, "steps": options.steps, "batch_size": options.batch, "micro_batch_size": 1,
              "layer_spec": options.layers, "log_every": 1, "save_every": options.steps + 1}  # fmt: skip
    if options.layers == "te":
        engine |= {"packed": True, "sequence_length": options.length}
    else:  # Megatron's own layers cannot pack, and keep the attention's scores unless they are computed again
        engine |= {"recompute": {"type": "selective"}, "distributed_optimizer": False, "overlap": {"gradients": False}}
    stages: Figures = {
        "problems": {"type": "problems", "source": {"type": "running_sum", "train": 1, "eval": 1}},
        "traces": {"type": "traces", "source": {"type": "files", "paths": [str(work / "traces.jsonl")]}},
        "curate": {"type": "curate", "inputs": {"traces": "traces", "problems": "problems"}, "filters": [],
                   "grader": {"type": "exact"}, "deduplicate": False, "decontaminate": None},
        "base": {"type": "base_model", "source": {"type": "checkpoint", "path": str(work / "hf")}},
        "tokenize": {"type": "tokenize", "inputs": {"dataset": "curate", "model": "base"},
                     "max_tokens": options.length + 1},
        "import": {"type": "import_checkpoint", "inputs": {"model": "base"}, "directory": DIRECTORY[options.engine],
                   "layer_spec": options.layers},
    }  # fmt: skip
    for precision in precisions:
        stages[precision] = {"type": "distill", "inputs": {"model": "import", "tokens": "tokenize"},
                             "engine": {**engine, "precision": {"type": precision}},
                             "resources": {"gpus_per_node": 1}}  # fmt: skip
    return {"name": "gpu-distill", "stages": stages}


def train(name: str, run: RunDirectory, recipe: Recipe, warmup: int) -> Figures:
    """Train anew in one precision: what its metrics say, or the line of what went wrong; the others go on."""
    try:
        launch(run, recipe, [name], [name], lambda _: None)
    except StageError as error:
        return {"error": str(error)}
    return from_metrics(list(read_jsonl(run.stage(name) / "metrics.jsonl")), warmup)


def train_peer(work: Path, recipe: Recipe) -> Figures:
    """Train in plain transformers."""
    try:
        return beside("peer", work, recipe)
    except StageError as error:
        return {"error": str(error)}


def from_metrics(rows: list[Figures], warmup: int) -> Figures:
    """Means over the time of the steps after the warm-up, the most memory of all steps, and the last loss."""
    steps = [row for row in rows if row["step"] > warmup]
    seconds = sum(row["step_time"] for row in steps)

    def mean(key: str) -> float | None:
        return sum(row[key] * row["step_time"] for row in steps) / seconds if key in steps[0] else None

    return {
        "steps": len(steps),
        "step_s": seconds / len(steps),
        "tokens_per_second": mean("tokens_per_second_per_gpu"),
        "tflops": mean("tflops_per_gpu"),
        "mfu": mean("mfu"),
        **{key: max((row[key] for row in rows if key in row), default=None) for key in ("memory_gib", "reserved_gib")},
        "loss": steps[-1]["loss"],
    }


def compare(figures: Figures, peer: Figures, estimate_gib: float | None) -> None:
    """Add the estimate, and the ratios to the peer and to what was measured."""
    figures["estimate_gib"] = estimate_gib
    if "tokens_per_second" in figures and "tokens_per_second" in peer:
        figures["over_peer"] = figures["tokens_per_second"] / peer["tokens_per_second"]
    if estimate_gib and figures.get("memory_gib"):
        figures["estimate_over_memory"] = estimate_gib / figures["memory_gib"]


def table(report: Figures) -> str:
    """The figures as Markdown, the peer last."""
    lines = ["| way | " + " | ".join(SHOWN) + " |", "|---" * (1 + len(SHOWN)) + "|"]
    for name, figures in {**report["variants"], "transformers": report["peer"]}.items():
        cells = ["–" if (found := figures.get(key)) is None else f"{found:.4g}" for key in SHOWN]
        lines.append(f"| {name} | {figures['error'] if 'error' in figures else ' | '.join(cells)} |")
    return "\n".join(lines)


def beside(what: str, work: Path, recipe: Recipe) -> Figures:
    """What `gpu_distill_side` finds in the engine's Python. Raises RequestError where it refuses the machine."""
    stage = [*recipe.stages.values()][-1]
    result, log = work / f"{what}.json", work / f"{what}.log"
    result.unlink(missing_ok=True)
    command = [interpreter(stage.environment), "-m", "benchmarks.gpu_distill_side", what, str(work)]
    code = start_logged(command, log, variables_for(stage)).wait()
    if not result.exists():
        said = log.read_text(errors="replace").strip().rpartition("\n")[2]
        raise StageError(f"{what}: exit code {code}: {said}")
    found: Figures = read_json(result)
    if "refused" in found:
        raise RequestError(*found["refused"])
    return found


if __name__ == "__main__":
    sys.exit(main())
