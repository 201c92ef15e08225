"""`python -m benchmarks.packing [--bridge DIR]`: our packing beside Megatron-Bridge's, as Markdown.

Both pack the same log-normal lengths (median 2,000 tokens) into bins of 16,384. Bridge's side is its segment-tree
first-fit decreasing, run from where the user has it: a checkout of NVIDIA-NeMo/Megatron-Bridge, or an installed
megatron-bridge. Of it only two files are loaded, without the packages around them, which need CUDA. The two take turns,
each time in a process of its own. CPU-seconds are of the packing alone (ours maps rows to bins and shuffles these;
Bridge's has only the lengths in them), its memory is what the process grew by; medians of the rounds.
"""

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

CAPACITY = 16_384
PACKAGES = (
    "megatron",
    "megatron.bridge",
    "megatron.bridge.utils",
    "megatron.bridge.data",
    "megatron.bridge.data.packing",
)
Measured = dict[str, float]


def main() -> None:
    """Measure every size and print the table, or, as a child process, measure one way once."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--bridge", type=Path, metavar="DIR", help="a checkout of Megatron-Bridge; else the installed one"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=["ours", "bridge"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.rows[0], options.bridge)))
        return
    bridge = find_bridge(options.bridge)
    ways = ["ours"] if bridge is None else ["bridge", "ours"]
    print(
        "| rows | way | CPU s | of | efficiency % | bins | memory MiB | process CPU s | Bridge/ours |\n|" + "---|" * 9
    )
    for rows in options.rows:
        found: dict[str, list[Measured]] = {way: [] for way in ways}
        for number in range(options.rounds):
            for way in ways if number % 2 else reversed(ways):
                found[way].append(run(way, rows, bridge))
        report(rows, found)
    if bridge is None:
        where = options.bridge or "this environment"
        sys.exit(f"Megatron-Bridge is missing in {where}: give --bridge a checkout of NVIDIA-NeMo/Megatron-Bridge")


def find_bridge(checkout: Path | None) -> Path | None:
    """The directory of the package megatron.bridge, of a checkout or installed."""
    if checkout is not None:
        places = [checkout / "src/megatron/bridge", checkout / "megatron/bridge", checkout]
    else:
        megatron = importlib.util.find_spec("megatron")
        roots = (megatron.submodule_search_locations or []) if megatron else []
        places = [Path(root) / "bridge" for root in roots]
    return next((place for place in places if (place / "data/packing/algorithms.py").is_file()), None)


def run(way: str, rows: int, bridge: Path | None) -> Measured:
    """Measure one way in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.packing", "--way", way, "--rows", str(rows)]
    done = subprocess.run(command + (["--bridge", str(bridge)] if bridge else []), stdout=subprocess.PIPE, check=True)
    measured: Measured = json.loads(done.stdout)
    return measured


def measure(way: str, rows: int, bridge: Path | None) -> Measured:
    """Pack once in this process."""
    import numpy as np

    random = np.random.default_rng(rows)
    lengths = np.clip(random.lognormal(np.log(2000), 1.0, rows).astype(np.int64), 16, CAPACITY)
    pack: Any
    if way == "ours":
        from data_prep.packing import pack

        given: Any = lengths
    else:
        pack, given = load_bridge(bridge or Path()).first_fit_decreasing, lengths.tolist()
    before, start = peak_mib(), time.process_time()
    bins = pack(given, CAPACITY)
    spent = time.process_time() - start
    return {
        "cpu_s": spent,
        "process_s": time.process_time(),
        "memory_mib": peak_mib() - before,
        "bins": len(bins),
        "efficiency": int(lengths.sum()) / (len(bins) * CAPACITY),
    }


def load_bridge(directory: Path) -> Any:
    """Bridge's algorithms.py, as a part of packages that have nothing but a place."""
    for name in PACKAGES:
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = [str(directory.joinpath(*name.split(".")[2:]))]
    return import_module("megatron.bridge.data.packing.algorithms")


def peak_mib() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(rows: int, found: dict[str, list[Measured]]) -> None:
    """Print a row for each way."""
    medians = {
        way: {name: statistics.median(one[name] for one in measured) for name in measured[0]}
        for way, measured in found.items()
    }
    for way, median in medians.items():
        seconds = [one["cpu_s"] for one in found[way]]
        ratio = f"{medians['bridge']['cpu_s'] / median['cpu_s']:.1f}" if "bridge" in medians else "–"
        figures = [
            f"{median['cpu_s']:.3f}",
            f"{min(seconds):.3f}–{max(seconds):.3f}",
            f"{median['efficiency'] * 100:.4f}",
            f"{median['bins']:,.0f}",
            f"{median['memory_mib']:.0f}",
            f"{median['process_s']:.2f}",
        ]
        print(f"| {rows:,} | {way} | {' | '.join(figures)} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
