"""`python -m benchmarks.conversion`: import and export beside `cp` and sync of the same bytes.

For each size a Qwen2-shaped model of random bytes is made in a temporary directory on the file system that is named.
Import takes turns with a cp of the model, then export with a cp of the checkpoint that was imported, now one first, now
the other. Before each, what both read is brought into the page cache, or with --cold out of it. No other file is there:
a virtual machine whose host takes free memory back is slow for whoever asks for more than was in use. Medians are
printed as Markdown, with the peak memory of the converting processes. The first round is not counted; in the end the
export is compared with the source.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoints_conversion.families import FAMILIES
from checkpoints_conversion.families.table import tensors
from checkpoints_conversion.safetensors import read_header, render_header
from checkpoints_conversion.spec import read_spec

LAYER_BYTES = 14_912_384 * 2
"""Bytes of one of Qwen2-0.5B's layers, in bf16."""

_CP, _SYNC = shutil.which("cp") or "/bin/cp", shutil.which("sync") or "/bin/sync"

CONFIG: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
"""The shape of Qwen2-0.5B, whose number of layers makes the size."""


@dataclass
class Measured:
    """The figures of one way to move the bytes."""

    body_s: list[float] = field(default_factory=list)
    process_s: list[float] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)


def main() -> None:
    """Measure every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.5, 1, 3], metavar="GB")
    parser.add_argument("--rounds", type=int, default=12, help="an even number has both orders alike")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cold", action="store_true", help="read from the disk, not from the page cache")
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="where the temporary directory is made")
    options = parser.parse_args()
    print("| size | way | body s | of | ratio to cp | process s | over cp s | peak RSS MiB |\n|" + "---|" * 8)
    with tempfile.TemporaryDirectory(dir=options.directory, prefix=".conversion-") as directory:
        for size in options.sizes:
            measure(Path(directory), int(size * 1e9), options.rounds, options.workers, options.cold)


def measure(directory: Path, size: int, rounds: int, workers: int, cold: bool) -> None:
    """Measure one size, and print a row for each way."""
    free = shutil.disk_usage(directory).free
    if free < 3 * size:
        sys.exit(
            f"{directory}: {size / 1e9:.1f} GB of model need {3 * size / 1e9:.1f} GB of room, not {free / 1e9:.1f}"
        )
    source, imported, exported = directory / "source", directory / "imported", directory / "exported"
    make_model(source, size)
    hashes = tensor_hashes(source)
    beside_cp(["import", source, imported], rounds, workers, cold)
    convert(["import", source, imported], workers, Measured())
    shutil.rmtree(source)
    beside_cp(["export", imported, exported], rounds, workers, cold)
    convert(["export", imported, exported], workers, Measured())
    if tensor_hashes(exported) != hashes:
        sys.exit(f"{exported} is not what the model was")
    shutil.rmtree(imported)
    shutil.rmtree(exported)


def beside_cp(conversion: list[str | Path], rounds: int, workers: int, cold: bool) -> None:
    """Measure a conversion and a cp of its source in turns, and print a row for each."""
    source, target = Path(conversion[1]), Path(conversion[2])
    ways: dict[str, Callable[[Measured], None]] = {
        f"cp before {conversion[0]}": lambda into: copy(source, target, into),
        str(conversion[0]): lambda into: convert(conversion, workers, into),
    }
    found = {name: Measured() for name in ways}
    for number in range(rounds + 1):
        for name in list(ways) if number % 2 else reversed(ways):
            prepare(source, cold)
            ways[name](found[name] if number else Measured())
            shutil.rmtree(target)
    report(sum(path.stat().st_size for path in source.rglob("*") if path.is_file()), found)


def prepare(directory: Path, cold: bool) -> None:
    """Bring every file of a directory into the page cache, or out of it."""
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb", buffering=0) as handle:
                if cold:
                    os.fsync(handle.fileno())
                    os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                else:
                    while handle.read(1 << 22):
                        pass


def make_model(directory: Path, size: int) -> None:
    """Write a model of random bytes of about this size."""
    directory.mkdir()
    vocabulary = CONFIG["vocab_size"] * CONFIG["hidden_size"] * 2
    layers = max(1, round((size - vocabulary) / LAYER_BYTES))
    (directory / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    spec = read_spec(directory / "config.json")
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for tensor in tensors(FAMILIES["qwen2"], spec, 1):
        for piece in tensor.pieces:
            rows = shapes[piece.source][1][0] if piece.source in shapes else 0
            shapes[piece.source] = ("BF16", (rows + piece.rows, *tensor.shape[1:]))
    header = render_header(shapes, {"format": "pt"})
    left = sum(2 * shape[0] * (shape[1] if len(shape) > 1 else 1) for _, shape in shapes.values())
    with open(directory / "model.safetensors", "wb") as handle:
        handle.write(header)
        while left:
            left -= handle.write(os.urandom(min(left, 1 << 24)))
        os.fsync(handle.fileno())


def copy(source: Path, target: Path, into: Measured) -> None:
    """cp and sync of a directory's files."""
    started = time.monotonic()
    subprocess.run([_CP, "-r", source, target], check=True)
    subprocess.run([_SYNC, *(path for path in target.rglob("*") if path.is_file())], check=True)
    into.body_s.append(time.monotonic() - started)
    into.process_s.append(into.body_s[-1])


_TIMED = (
    "import re, sys, time; from checkpoints_conversion.cli import convert; started = time.monotonic(); "
    "convert.main(sys.argv[1:], standalone_mode=False); "
    "body = time.monotonic() - started; status = open('/proc/self/status').read(); "
    "print(body, re.search(r'VmHWM:\\s+(\\d+)', status)[1], file=sys.stderr)"
)


def convert(arguments: list[str | Path], workers: int, into: Measured) -> None:
    """One conversion in a process of its own, started afresh."""
    started = time.monotonic()
    command = [sys.executable, "-c", _TIMED, *map(str, arguments), "--workers", str(workers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    into.process_s.append(time.monotonic() - started)
    body, rss = done.stderr.splitlines()[-1].split()
    into.body_s.append(float(body))
    into.rss_mib.append(int(rss) / 1024)


def tensor_hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of each tensor's bytes; the order of the tensors in the file does not matter."""
    path = directory / "model.safetensors"
    found: dict[str, Any] = {}
    with open(path, "rb") as handle:
        for name, tensor in read_header(path).tensors.items():
            handle.seek(tensor.offset)
            found[name] = hashlib.sha256()
            for start in range(0, tensor.bytes, 1 << 20):
                found[name].update(handle.read(min(1 << 20, tensor.bytes - start)))
    return {name: digest.hexdigest() for name, digest in found.items()}


def report(total: int, found: dict[str, Measured]) -> None:
    """One row for each way; the first is what the others are compared with."""
    base = statistics.median(next(iter(found.values())).body_s)
    for name, figures in found.items():
        body, process = statistics.median(figures.body_s), statistics.median(figures.process_s)
        rss = f"{max(figures.rss_mib):.0f}" if figures.rss_mib else "–"
        print(f"| {total / 1e9:.2f} GB | {name} | {body:.2f} | {min(figures.body_s):.2f}–{max(figures.body_s):.2f} "
              f"| {body / base:.2f} | {process:.2f} "
              f"| {process - base:+.2f} | {rss} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
