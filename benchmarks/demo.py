"""`python -m benchmarks.demo`: the tiny recipe with several seeds; pass@1 of each model, the paired gains, the cost.

The claims it checks: distilled is above base, and GRPO at least 15 points of pass@1 above distilled, with a paired 95 %
interval that excludes 0, on problems that no training saw. Exit code 1 where a seed misses them.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from reasonforge import artifacts
from reasonforge.files import read_json
from recipes.run_directory import RunDirectory

CLAIMED_GAIN = 0.15


def main() -> int:
    """Run the seeds one after the other and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=Path("recipes/distill-grpo-qwen2-tiny.yaml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/benchmark"))
    options = parser.parse_args()
    runs = {seed: run_seed(options.recipe, options.runs_dir, seed) for seed in options.seeds}
    reports = {seed: read_json(run.report_link / "report.json") for seed, run in runs.items()}
    print(scores_table(reports))
    print(cost_table(runs))
    missed = [seed for seed, report in reports.items() if not holds(report)]
    print(f"The claims hold for {len(reports) - len(missed)} of {len(reports)} seeds.")
    return 1 if missed else 0


def run_seed(recipe: Path, runs_dir: Path, seed: int) -> RunDirectory:
    """Run the recipe as a user would; what is done already is not done again."""
    name = f"{recipe.stem}-seed{seed}"
    command = [
        sys.executable,
        "-m",
        "reasonforge",
        "run",
        str(recipe),
        "--set",
        f"seed={seed}",
        "--name",
        name,
        "--runs-dir",
        str(runs_dir),
    ]
    subprocess.run(command, check=True)
    return RunDirectory(runs_dir / name)


def holds(report: dict[str, Any]) -> bool:
    """Whether a seed's report bears the claims out."""
    distilled, grpo = report["paired"]["distilled-base"]["pass@1"], report["paired"]["grpo-distilled"]["pass@1"]
    return bool(distilled["low"] > 0 and grpo["value"] >= CLAIMED_GAIN and grpo["low"] > 0)


def scores_table(reports: dict[int, dict[str, Any]]) -> str:
    """pass@1 of the three models and both paired differences, in points, a row a seed."""
    models = list(next(iter(reports.values()))["models"])
    pairs = list(next(iter(reports.values()))["paired"])
    lines = [
        "| seed | " + " | ".join(f"{name} pass@1" for name in models) + " | " + " | ".join(pairs) + " |",
        "|---" * (1 + len(models) + len(pairs)) + "|",
    ]
    for seed, report in reports.items():
        cells = [interval(report["models"][name]["pass@1"]) for name in models]
        cells += [interval(report["paired"][pair]["pass@1"]) for pair in pairs]
        lines.append(f"| {seed} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def interval(score: dict[str, float]) -> str:
    """A share with its interval, in percent."""
    return f"{100 * score['value']:.1f} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


def cost_table(runs: dict[int, RunDirectory]) -> str:
    """Wall and CPU seconds of each stage, a column a seed."""
    costs = {
        seed: {found.receipt.stage: found.receipt.cost for found in map(artifacts.load, run.published())}
        for seed, run in runs.items()
    }
    lines = [
        "| stage | " + " | ".join(f"seed {seed}: wall / CPU s" for seed in costs) + " |",
        "|---" * (1 + len(costs)) + "|",
    ]
    for stage in next(iter(costs.values())):
        cells = [f"{cost[stage].wall_s:.1f} / {cost[stage].cpu_s:.1f}" for cost in costs.values()]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    totals = [
        f"{sum(c.wall_s for c in cost.values()):.0f} / {sum(c.cpu_s for c in cost.values()):.0f}"
        for cost in costs.values()
    ]
    return "\n".join([*lines, "| all | " + " | ".join(totals) + " |"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
