"""`python -m benchmarks.decontamination --peer decontaminate.py`: ours beside open-r1's 13-gram loop, as Markdown.

Problems and documents of random words are generated; some documents contain a part of a problem, of 12 words or more,
or a whole short one. open-r1's functions are imported from the script that is named (`scripts/decontaminate.py` of the
user's own checkout) and called as the script does; each side takes its turn in a process of its own, index included,
with the documents in memory. A first round, which compiles, is not counted. On problems of 13 words or more both must
name the same documents and problems; short problems are for ours alone.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from reasonforge.files import read_json, read_jsonl, write_json, write_jsonl

N = 13


def main() -> None:
    """Measure both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="open-r1's scripts/decontaminate.py; without it, ours alone")
    parser.add_argument("--problems", type=int, default=5000)
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", nargs=2, metavar=("WAY", "DIRECTORY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        measure(options.run[0], Path(options.run[1]), options.peer)
        return
    if options.peer is None or not options.peer.is_file():
        print("open-r1's script is not there: name your checkout's scripts/decontaminate.py with --peer; ours alone:\n")
        options.peer = None
    with tempfile.TemporaryDirectory() as directory:
        make(Path(directory), options.problems, options.documents)
        found: dict[str, list[dict[str, Any]]] = {"ours": [], **({"open-r1": []} if options.peer else {})}
        for number in range(options.rounds + 1):
            for way, runs in found.items():
                command = [sys.executable, "-m", "benchmarks.decontamination", "--run", way, directory]
                command += ["--peer", str(options.peer)] if options.peer else []
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                if number:
                    runs.append(json.loads(done.stdout))
        report(options.documents, read_json(Path(directory) / "planted.json"), found)


def make(directory: Path, problems: int, documents: int) -> None:
    """Problems of 4 to 120 words, one in ten shorter than 13; documents of 20 to 300, one in twenty contaminated."""
    draw = random.Random(0)
    words = [
        "".join(draw.choices("abcdefghijklmnopqrstuvwxyz0123456789+=$\\", k=draw.randint(1, 9))) for _ in range(20_000)
    ]
    texts = [draw.choices(words, k=draw.randint(4, N - 1) if number % 10 == 0 else draw.randint(N, 120))
             for number in range(problems)]  # fmt: skip
    rows = [{"id": str(number), "prompt": " ".join(text).capitalize()} for number, text in enumerate(texts)]
    write_jsonl(directory / "problems.jsonl", rows)
    planted: dict[str, list[int]] = {"long": [], "short": [], "12 words only": []}
    made = []
    for number in range(documents):
        text = [" ".join(draw.choices(words, k=draw.randint(20, 300)))]
        if number % 20 == 0:
            problem = draw.choice(texts)
            if len(problem) < N:  # short: after an instruction, or the whole document
                planted["short"].append(number)
                text = [" ".join(problem).upper()] if number % 40 else [*text, " ".join(problem), "Think."]
            else:
                length = N - 1 if number % 100 == 0 else draw.randint(N, len(problem))
                planted["12 words only" if length < N else "long"].append(number)
                start = draw.randint(0, len(problem) - length)
                text.insert(0, " ".join(draw.choices(words, k=30)))
                text[1:1] = [" ".join(problem[start : start + length])]
                text = [" ".join(text)]
        made.append({"prompt": "\n".join(text)})
    write_jsonl(directory / "documents.jsonl", made)
    write_json(directory / "planted.json", planted)


def measure(way: str, directory: Path, peer: Path | None) -> None:
    """Run one way and print its figures as JSON."""
    problems = list(read_jsonl(directory / "problems.jsonl"))
    documents = [row["prompt"] for row in read_jsonl(directory / "documents.jsonl")]
    hits, index_s, find_s = (
        ours(problems, documents) if way == "ours" or peer is None else open_r1(problems, documents, peer)
    )
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"index_s": index_s, "find_s": find_s, "rss": used.ru_maxrss / 1024, "hits": hits}))


def ours(problems: list[dict[str, Any]], documents: list[str]) -> tuple[dict[str, list[str]], float, float]:
    """Of each document that is hit, the problems; CPU seconds for the index, imports included, and for the rest."""
    started = time.process_time()
    from data_prep.overlap.decontamination import Decontamination, EvaluationIndex

    index = EvaluationIndex(problems, Decontamination(n=N))
    ready = time.process_time()
    hits = {}
    for start in range(0, len(documents), 250):
        for place, found in enumerate(index.find(documents[start : start + 250])):
            if found:
                hits[str(start + place)] = sorted({hit["problem_id"] for hit in found})
    return hits, ready - started, time.process_time() - ready


def open_r1(
    problems: list[dict[str, Any]], documents: list[str], peer: Path
) -> tuple[dict[str, list[str]], float, float]:
    """The same with the peer's functions, called as its script does; it says only that a document is hit."""
    started = time.process_time()
    spec = importlib.util.spec_from_file_location("open_r1_decontaminate", peer)
    if spec is None or spec.loader is None:
        sys.exit(f"{peer}: not a Python file")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with contextlib.redirect_stderr(io.StringIO()):
        lookup = script.build_ngram_lookup([problem["prompt"] for problem in problems], ngram_size=N)
    ready = time.process_time()
    hits: dict[str, list[str]] = {}
    for number, document in enumerate(documents):
        ngrams = script.build_ngram_single(document, ngram_size=N)
        if any({ngram in lookup for ngram in ngrams}):  # noqa: C419 (as the script does)
            hits[str(number)] = []
    find_s = time.process_time() - ready
    for row in hits:  # which problems, for the comparison alone
        ngrams = script.build_ngram_single(documents[int(row)], ngram_size=N)
        hits[row] = sorted({str(one) for ngram in ngrams if ngram in lookup for one in lookup[ngram]})
    return hits, ready - started, find_s


def report(documents: int, planted: dict[str, list[int]], found: dict[str, list[dict[str, Any]]]) -> None:
    """A row for each way, and what was found of what was planted."""
    columns = "way | index CPU s | documents CPU s | of | documents/CPU-s | over ours | peak MiB | long | short | clean"
    print(f"| {columns} |\n" + "|---" * 10 + "|")
    base = statistics.median(run["find_s"] for run in found["ours"])
    contaminated = {str(row) for kind in ("long", "short") for row in planted[kind]}
    for way, runs in found.items():
        find, hits = [run["find_s"] for run in runs], runs[0]["hits"]
        recall = {kind: sum(str(row) in hits for row in rows) / max(1, len(rows)) for kind, rows in planted.items()}
        print(f"| {way} | {statistics.median(run['index_s'] for run in runs):.2f} | {statistics.median(find):.2f} "
              f"| {min(find):.2f}–{max(find):.2f} | {documents / statistics.median(find):,.0f} "
              f"| {statistics.median(find) / base:.1f} | {max(run['rss'] for run in runs):.0f} "
              f"| {recall['long']:.4f} | {recall['short']:.4f} | {len(set(hits) - contaminated)} |")  # fmt: skip
    print(
        "\nlong, short: the part of the planted documents that was found; clean: documents hit without being planted."
    )
    if "open-r1" in found:
        short = {str(row) for row in planted["short"]}
        mine, theirs = ({row: problems for row, problems in found[way][0]["hits"].items() if row not in short}
                        for way in ("ours", "open-r1"))  # fmt: skip
        same = "identical" if mine == theirs else "DIFFERENT"
        print(f"Hits beside the short ones, document by problem: {same} ({len(theirs):,} documents).")


if __name__ == "__main__":
    main()
