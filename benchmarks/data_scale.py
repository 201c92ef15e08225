"""`python -m benchmarks.data_scale`: a large file of traces through the whole data path, with its memory and its speed.

Traces of lognormal length are made up, 2 GB by default, with wrong answers, loops, copies, near-copies and prompts of
a benchmark among them. They are verified (grader `exact`), filtered, deduplicated, decontaminated, freed of
near-duplicates, and tokenized, by one worker and by two, each in a process of its own. Peak memory is that of the
largest process (its high-water mark) and of the whole tree (proportional set size, every 0.1 s); CPU seconds are the
tree's; what comes out must be the same. `index` measures what deduplication remembers of a million rows. All files are
deleted afterwards.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.tokenization import texts, train, tree_pss
from reasonforge.files import jsonl_line, write_jsonl
from reasonforge.progress import Progress

SAMPLING_S = 0.1
PHASES = ("shards", "gather", "tokenize")
PROBLEMS = 2000
"""Of the benchmark that rows must not share words with."""
SPACE = 4
"""How many times the size of the traces must be free on the disk."""


@dataclass
class Measured:
    """What a run took, and what it made."""

    wall_s: float
    cpu_s: float
    largest_mib: float
    """The high-water mark of the largest process."""
    tree_mib: float
    said: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    """Make the traces, run the ways, print the tables; exit code 1 where outputs differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=2000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--index-rows", type=int, default=1_000_000, help="0 leaves the index out")
    parser.add_argument("--model", type=Path, help="a model directory with a tokenizer; else one is trained")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="where there is room")
    parser.add_argument("--run", nargs=2, metavar=("DIRECTORY", "WORKERS"), help=argparse.SUPPRESS)
    parser.add_argument("--index", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(curate_and_tokenize(Path(options.run[0]), int(options.run[1]))))
        return
    if options.index:
        print(json.dumps(fill_index(options.index)))
        return
    size = int(options.megabytes * 1e6)
    if shutil.disk_usage(options.directory).free < SPACE * size:
        sys.exit(f"{options.directory}: less than {SPACE * size / 1e9:.0f} GB are free")
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        rows = write_traces(directory, size)
        if options.model is None:
            train(directory / "model")
        else:
            (directory / "model").symlink_to(options.model.absolute())
        print(f"{rows:,} traces, {(directory / 'traces.jsonl').stat().st_size / 1e6:,.0f} MB\n", flush=True)
        found = {workers: measure(directory, workers) for workers in options.workers}
    report(found)
    if options.index_rows:
        report_index(options.index_rows)
    if len({one.said["digest"] for one in found.values()}) > 1:
        sys.exit("the outputs differ")


def write_traces(directory: Path, size: int) -> int:
    """Traces of about 8 kB on average and 60 kB at most, and a benchmark's problems; returns how many traces."""
    chance = random.Random(0)
    sentences = [one + "." for text in texts(1, min(20_000_000, max(size // 10, 200_000))) for one in text.split(". ")]
    problems = [{"id": f"e{number}", "prompt": " ".join(chance.choices(sentences, k=3))} for number in range(PROBLEMS)]
    write_jsonl(directory / "eval.jsonl", problems)
    written = count = 0
    recent: list[dict[str, Any]] = []
    with open(directory / "traces.jsonl", "w", encoding="utf-8") as handle:
        while written < size:
            row = trace(chance, count, sentences, problems, recent)
            line = jsonl_line(row)
            handle.write(line)
            written += len(line.encode())
            count += 1
            if len(recent) < 1000:
                recent.append(row)
            elif chance.random() < 0.01:
                recent[chance.randrange(1000)] = row
    return count


def trace(
    chance: random.Random,
    number: int,
    sentences: list[str],
    problems: list[dict[str, Any]],
    recent: list[dict[str, Any]],
) -> dict[str, Any]:
    """One trace: in 100, 10 are wrong, 2 loop, 2 are copies, 3 near-copies, 1 of the benchmark."""
    kind, answer = chance.randrange(100), str(chance.randrange(10_000))
    words = chance.choices(sentences, k=min(400, int(chance.lognormvariate(4.0, 0.8)) + 2))
    prompt = " ".join(chance.choices(sentences, k=2)) + f" What is x_{number}?"
    if kind < 2:
        words = words[:2] * 60
    elif kind < 7 and recent:
        earlier = chance.choice(recent)
        prompt, answer = earlier["prompt"], earlier["answer"]
        words = earlier["response"].removeprefix("<think>\n").partition("\n</think>")[0].split("\n")
        if kind >= 4:
            words[chance.randrange(len(words))] = chance.choice(sentences)
    elif kind == 7:
        prompt = chance.choice(problems)["prompt"] + " Explain."
    said = answer if kind < 90 else answer + "1"
    response = "<think>\n" + "\n".join(words) + f"\n</think>\nThe answer is \\boxed{{{said}}}."
    return {"id": f"p{number}/0", "problem_id": f"p{number}", "sample": 0, "prompt": prompt, "answer": answer,
            "response": response, "finish_reason": "stop", "prompt_tokens": None, "completion_tokens": None,
            "teacher": "made up"}  # fmt: skip


def curate_and_tokenize(directory: Path, workers: int) -> dict[str, Any]:
    """The whole path, in this process and its workers; returns seconds by phase, counts and a digest of the output."""
    from data_prep.curation.curate import Curation
    from data_prep.curation.steps import Steps
    from data_prep.filters import CorrectFilter, RepetitionFilter, ThinkingFilter, TruncationFilter
    from data_prep.grading import ExactGrader
    from data_prep.overlap.decontamination import Benchmark, Decontamination
    from data_prep.overlap.deduplication import NearDuplicates
    from data_prep.tokenization.dataset import tokenize_file

    place = directory / f"workers-{workers}"
    (place / "tokens").mkdir(parents=True)
    steps = Steps(
        grader=ExactGrader(),
        filters=[CorrectFilter(), TruncationFilter(), ThinkingFilter(), RepetitionFilter()],
        deduplicate=True,
        decontaminate=Decontamination(),
        near_duplicates=NearDuplicates(),
    )
    benchmark = Benchmark(path=str(directory / "eval.jsonl"))
    curation = Curation([directory / "traces.jsonl"], steps, place / "shards", [benchmark])
    clock = [times()]
    curation.work(workers=workers, progress=Progress)
    clock.append(times())
    counts = curation.finish(place, seed=0, progress=Progress)
    clock.append(times())
    with Progress("tokenizing", counts["rows"], "rows") as progress:
        summary = tokenize_file(
            place / "dataset.jsonl",
            directory / "model",
            place / "tokens",
            max_tokens=32_768,
            scratch=place / "token-shards",
            workers=workers,
            progress=progress,
        )
    clock.append(times())
    names = ("dataset.jsonl", "dropped.jsonl", "funnel.json", "tokens/tokens.parquet")
    spent = {
        phase: [round(after - before, 2) for before, after in zip(*pair, strict=True)]
        for phase, pair in zip(PHASES, pairwise(clock), strict=True)
    }
    digest = hashlib.sha256("".join(map(file_hash, (place / name for name in names))).encode()).hexdigest()
    return {"spent": spent, "counts": counts, "tokens": summary["tokens"], "digest": digest}


def times() -> tuple[float, float]:
    """Wall and CPU seconds so far, of this process and those of its workers that have ended."""
    used = os.times()
    return time.monotonic(), used.user + used.system + used.children_user + used.children_system


def file_hash(path: Path) -> str:
    """SHA-256."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def measure(directory: Path, workers: int) -> Measured:
    """Run the path in a process of its own and watch its tree."""
    command = [sys.executable, "-m", "benchmarks.data_scale", "--run", str(directory), str(workers)]
    started = time.monotonic()
    with open(directory / "said", "w+") as said:
        process = subprocess.Popen(command, stdout=said)
        marks: dict[int, int] = {}
        tree = 0
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            tree = max(tree, tree_pss(process.pid))
            for pid, size in high_waters(process.pid).items():
                marks[pid] = max(size, marks.get(pid, 0))
            time.sleep(SAMPLING_S)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        if status:
            sys.exit(f"{' '.join(command)} failed")
        said.seek(0)
        found = json.loads(said.read().splitlines()[-1])
    shutil.rmtree(directory / f"workers-{workers}")
    return Measured(wall, usage.ru_utime + usage.ru_stime, max(marks.values()) / 1024, tree / 1024, found)


def high_waters(process: int) -> dict[int, int]:
    """By process of a tree, its largest resident set so far, in KiB."""
    try:
        status = Path(f"/proc/{process}/status").read_text().splitlines()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:  # it has just ended
        return {}
    found = dict.fromkeys([process], next((int(line.split()[1]) for line in status if line.startswith("VmHWM:")), 0))
    for child in children:
        found |= high_waters(int(child))
    return found


def report(found: dict[int, Measured]) -> None:
    """A row for each number of workers."""
    first = next(iter(found.values()))
    phases = " | ".join(f"{phase}: wall, CPU s" for phase in PHASES)
    print(f"| workers | wall s | CPU s | times as fast | {phases} | largest process MiB | tree MiB |")
    print("|" + " --- |" * (6 + len(PHASES)))
    for workers, one in found.items():
        spent = " | ".join("{:.1f}, {:.1f}".format(*one.said["spent"][phase]) for phase in PHASES)
        print(f"| {workers} | {one.wall_s:.1f} | {one.cpu_s:.1f} | {first.wall_s / one.wall_s:.2f} | {spent} | "
              f"{one.largest_mib:.0f} | {one.tree_mib:.0f} |")  # fmt: skip
    print(f"\n{json.dumps(first.said['counts'])}, {first.said['tokens']:,} tokens\n", flush=True)


def fill_index(rows: int) -> dict[str, float]:
    """MB (10^6 bytes) of resident memory that so many rows take in each thing that remembers them."""
    import numpy as np

    from data_prep.overlap.deduplication import Deduplicator, NearDuplicates
    from data_prep.overlap.minhash import bands_and_rows
    from data_prep.overlap.sketching import SketchedDeduplicator

    chance = np.random.default_rng(0)
    bands, of_a_band = bands_and_rows(NearDuplicates().threshold)
    near = SketchedDeduplicator(NearDuplicates(), lambda number: {"id": str(number), "prompt": "", "response": ""})
    near.find(chance.integers(0, 256, (1000, bands * of_a_band), np.uint8), range(1000))  # compiled now
    clock = [resident()]
    exact = Deduplicator()
    for number in range(rows):
        exact.first_of(chance.bytes(16), f"train-{number:09d}/0")
    clock.append(resident())
    ids = {chance.bytes(16) for _ in range(rows)}
    clock.append(resident())
    for start in range(0, rows, 1000):
        near.find(chance.integers(0, 256, (1000, bands * of_a_band), np.uint8), range(start, start + 1000))
    clock.append(resident())
    kinds = ("equal rows", "ids", "near-duplicates")
    sizes = {kind: (after - before) / 1e6 for kind, (before, after) in zip(kinds, pairwise(clock), strict=True)}
    return {**sizes, "rows": len(ids)}


def resident() -> int:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def report_index(rows: int) -> None:
    """A row for each thing that remembers rows."""
    command = [sys.executable, "-m", "benchmarks.data_scale", "--index", str(rows)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print("| remembered | MB a million rows |\n| --- | --- |")
    for kind, size in found.items():
        if kind != "rows":
            print(f"| {kind} | {size * 1e6 / rows:.0f} |")


if __name__ == "__main__":
    main()
