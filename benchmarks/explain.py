"""`python -m benchmarks.explain FILE...`: precision and recall of `explain` per cause on labelled excerpts.

Each line of a file is a JSON object with `id`, `label` (the root cause) and `excerpt` (the log). With `--errors` the
excerpts that got another answer are named.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasonforge.files import read_jsonl
from slurm.explain.engine import Diagnosis, explain, log_of_text
from slurm.explain.rules import Table
from slurm.explain.table import read_table


@dataclass(frozen=True)
class Answer:
    """An excerpt's label and what `explain` said."""

    id: str
    label: str
    diagnosis: Diagnosis


def main() -> None:
    """Print the table of every file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rules", action="append", type=Path, default=[], help="a table of rules of your own")
    parser.add_argument("--errors", action="store_true", help="name the excerpts that got another answer")
    options = parser.parse_args()
    table = read_table(options.rules)
    for path in options.files:
        answers = ask(table, read_jsonl(path))
        print(f"\n{path.name}\n")
        print(per_cause(answers))
        if options.errors:
            print("\n".join(mistakes(answers)))


def ask(table: Table, rows: Iterable[dict[str, Any]]) -> list[Answer]:
    """What `explain` says of each labelled excerpt."""
    return [Answer(row["id"], row["label"], explain(table, [log_of_text(row["excerpt"])])) for row in rows]


def per_cause(answers: Sequence[Answer]) -> str:
    """A Markdown table: for each cause its excerpts, how many were right, precision and recall."""
    labelled: Counter[str] = Counter(item.label for item in answers)
    said: Counter[str] = Counter(item.diagnosis.cause for item in answers)
    right: Counter[str] = Counter(item.label for item in answers if item.diagnosis.cause == item.label)
    lines = ["| cause | excerpts | right | precision | recall |", "|---|---|---|---|---|"]
    for cause in sorted({*labelled, *said}):
        precision = f"{right[cause] / said[cause]:.2f}" if said[cause] else "-"
        recall = f"{right[cause] / labelled[cause]:.2f}" if labelled[cause] else "-"
        lines.append(f"| {cause} | {labelled[cause]} | {right[cause]} | {precision} | {recall} |")
    unknown = said["unknown"] - right["unknown"]
    total = len(answers)
    lines.append(f"| all | {total} | {right.total()} | {right.total() / max(1, total - unknown):.3f} "
                 f"| {right.total() / max(1, total):.3f} |")  # fmt: skip
    return "\n".join(lines)


def mistakes(answers: Iterable[Answer]) -> list[str]:
    """A line for each excerpt that got another answer than its label."""
    return [
        f"{item.id}: {item.label}, said {item.diagnosis.cause} ({item.diagnosis.confidence}): "
        f"{item.diagnosis.lines[0][:140] if item.diagnosis.lines else '-'}"
        for item in answers
        if item.diagnosis.cause != item.label
    ]


if __name__ == "__main__":
    main()
