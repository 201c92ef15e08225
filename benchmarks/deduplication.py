"""`python -m benchmarks.deduplication`: our near-duplicates beside rensa's, end to end on generated documents.

A jsonl file of texts of random words is written; some are near-copies of earlier ones at several similarities, on both
sides of the threshold. Each way reads the file in a process of its own and says which rows go; CPU seconds, peak
memory, the recall of planted pairs whose true Jaccard similarity (sets of 5 words) reaches .8, and rows that went with
no such partner are printed as Markdown. `start` is what a way does before the first row, once however many there are:
it imports its library, and ours links what numba compiled in an earlier process. A first round, which compiles, is not
counted. rensa is imported where this Python finds it (`pip install rensa`, or PYTHONPATH).

rensa has four rows: `5 words` makes the shingles that we take; `5 words, .7` lowers the threshold and takes 32 bands,
to reach our recall; `words` is its documentation's `text.split()` (then its similarity is one of sets of words); and
`rho` its fastest batch way, over the 5 words, which flags both rows of a pair.
"""

import argparse
import importlib.util
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasonforge.files import read_jsonl, write_jsonl

THRESHOLD, SHINGLE = 0.8, 5
EDITS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
"""The parts of its words that a planted copy changes: similarities from about .98 to .45."""


@dataclass
class Truth:
    """What was planted: a row's number, and the earlier row it was copied from, with their similarity."""

    pairs: dict[int, tuple[int, float]]

    def recall(self, dropped: set[int]) -> float:
        """The part of the pairs at or above the threshold whose copy went."""
        similar = [row for row, (_, similarity) in self.pairs.items() if similarity >= THRESHOLD]
        return sum(row in dropped for row in similar) / max(1, len(similar))

    def false(self, dropped: set[int]) -> int:
        """Rows that went although no row is similar enough; an original is similar to its copy."""
        close = {row for copy, (first, value) in self.pairs.items() if value >= THRESHOLD for row in (copy, first)}
        return len(dropped - close)


def main() -> None:
    """Measure every way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        measure(options.run[0], Path(options.run[1]))
        return
    ways = [way for way in WAYS if way.startswith("ours") or importlib.util.find_spec("rensa")]
    if len(ways) < len(WAYS):
        print("rensa is not installed here: `pip install rensa`, into a directory that PYTHONPATH names; ours alone:\n")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "documents.jsonl"
        truth = write_documents(path, options.rows)
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for number in range(options.rounds + 1):
            for way in ways:
                command = [sys.executable, "-m", "benchmarks.deduplication", "--run", way, str(path)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                if number:
                    found[way].append(json.loads(done.stdout))
        report(options.rows, path.stat().st_size, truth, found)


def write_documents(path: Path, rows: int) -> Truth:
    """Texts of 50 to 500 words; one in seven is a copy of an earlier one with some words changed."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(1, 11))) for _ in range(30_000)]
    made: list[list[str]] = []
    originals: list[int] = []
    pairs = {}
    for number in range(rows):
        if number % 7 == 6:
            first = draw.choice(originals)
            text = list(made[first])
            for _ in range(max(1, round(draw.choice(EDITS) * len(text)))):
                text[draw.randrange(len(text))] = draw.choice(words)
            one, two = ({tuple(some[at : at + SHINGLE]) for at in range(len(some) - SHINGLE + 1)}
                        for some in (made[first], text))  # fmt: skip
            pairs[number] = (first, len(one & two) / len(one | two))
        else:
            originals.append(number)
            text = draw.choices(words, k=draw.randint(50, 500))
        made.append(text)
    write_jsonl(path, ({"id": str(number), "text": " ".join(text)} for number, text in enumerate(made)))
    return Truth(pairs)


def measure(way: str, path: Path) -> None:
    """Run one way, of two rows and then of all, and print its figures as JSON."""
    began = time.process_time()
    WAYS[way]({"id": str(number), "text": "a b c d e f " * 2 + str(number)} for number in range(2))
    started = time.process_time()
    remembered, dropped = WAYS[way](read_jsonl(path))
    figures = {"start_s": started - began, "work_s": time.process_time() - started, "dropped": dropped,
               "remembered": remembered, "rss": peak()}  # fmt: skip
    print(json.dumps(figures))


def peak() -> float:
    """MiB that this process has held at most, by Linux; `getrusage` gives its parent's where those are more."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def ours(rows: Iterable[dict[str, Any]]) -> tuple[float, list[int]]:
    """Bytes remembered a kept row, and the rows that go."""
    from itertools import islice

    from data_prep.overlap.deduplication import NearDeduplicator, NearDuplicates

    config = NearDuplicates(threshold=THRESHOLD, size=SHINGLE, columns=["text"])
    dropped, count, waiting = [], 0, iter(rows)
    with tempfile.TemporaryDirectory() as directory:
        near = NearDeduplicator(config, Path(directory))
        while batch := list(islice(waiting, 250)):
            dropped += [count + place for place, found in enumerate(near.find(batch)) if found]
            count += len(batch)
        return near.memory / (count - len(dropped)), dropped


def rensa_words(rows: Iterable[dict[str, Any]]) -> tuple[float, list[int]]:
    """As rensa's documentation does it."""
    return _rensa((row["id"], row["text"].split()) for row in rows)


def rensa_shingles(rows: Iterable[dict[str, Any]]) -> tuple[float, list[int]]:
    """The same with shingles."""
    return _rensa((row["id"], _shingles(row["text"])) for row in rows)


def rensa_wider(rows: Iterable[dict[str, Any]]) -> tuple[float, list[int]]:
    """The same with a threshold at which it finds nearly all pairs of .8."""
    return _rensa(((row["id"], _shingles(row["text"])) for row in rows), threshold=0.7, num_bands=32)


def rensa_rho(rows: Iterable[dict[str, Any]]) -> tuple[float, list[int]]:
    """The signatures of all shingles in one matrix, and a flag for each row that has a partner."""
    rensa = importlib.import_module("rensa")
    matrix = rensa.RMinHash.digest_matrix_from_token_sets_rho((_shingles(row["text"]) for row in rows), 128, 42)
    flags = rensa.RMinHashLSH(THRESHOLD, 128, 16).query_duplicate_flags_matrix_one_shot(matrix)
    return 0.0, [number for number, flag in enumerate(flags) if flag]


def _rensa(pairs: Iterator[tuple[str, list[str]]], **options: float) -> tuple[float, list[int]]:
    rensa = importlib.import_module("rensa")
    near = rensa.RMinHashDeduplicator(**{"threshold": THRESHOLD, "num_perm": 128, "use_lsh": True, **options})
    return 0.0, [number for number, kept in enumerate(near.add_pairs(pairs)) if not kept]


def _shingles(text: str) -> list[str]:
    words = text.split()
    return [" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))]


WAYS: dict[str, Callable[[Iterable[dict[str, Any]]], tuple[float, list[int]]]] = {
    "ours": ours,
    "rensa, 5 words": rensa_shingles,
    "rensa, 5 words, .7": rensa_wider,
    "rensa, words": rensa_words,
    "rensa, rho": rensa_rho,
}


def report(rows: int, size: int, truth: Truth, found: dict[str, list[dict[str, Any]]]) -> None:
    """A row for each way."""
    planted = [similarity for _, similarity in truth.pairs.values()]
    similar = sum(value >= THRESHOLD for value in planted)
    print(f"{rows:,} documents, {size / 1e6:.0f} MB, {len(planted):,} planted copies, {similar:,} of them similar\n")
    print("| way | CPU s | of | start | both | documents/CPU-s | over ours | with start | peak MiB | recall | false |")
    print("|---" * 11 + "|")
    middle = {way: [statistics.median(run[part] for run in runs) for part in ("work_s", "start_s")]
              for way, runs in found.items()}  # fmt: skip
    for way, runs in found.items():
        (work, start), dropped = middle[way], set(runs[0]["dropped"])
        least, most = (pick(run["work_s"] for run in runs) for pick in (min, max))
        print(
            f"| {way} | {work:.2f} | {least:.2f}–{most:.2f} | {start:.2f} | {work + start:.2f} | {rows / work:,.0f} "
            f"| {work / middle['ours'][0]:.1f} | {(work + start) / sum(middle['ours']):.1f} "
            f"| {max(run['rss'] for run in runs):.0f} | {truth.recall(dropped):.4f} | {truth.false(dropped)} |"
        )
    print(f"\nOurs remembers {found['ours'][0]['remembered']:.0f} bytes a kept row.")


if __name__ == "__main__":
    main()
