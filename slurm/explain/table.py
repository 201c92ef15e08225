"""Reads the table of rules: the shipped one, and those of a user laid over it. `engine` and the CLI call it."""

from collections.abc import Sequence
from pathlib import Path

from reasonforge.config import load
from reasonforge.errors import RequestError
from slurm.explain.rules import Rule, Table
from slurm.explain.scan import Scanner

SHIPPED = Path(__file__).with_name("rules.yaml")


def read_table(extras: Sequence[Path] = ()) -> Table:
    """The shipped table with a user's tables laid over it, in order; a rule of the same name is replaced.

    Raises RequestError with file and line for a mistake in a user's table, and for a rule that does not find its
    example or finds what it must not.
    """
    table = load(Table, SHIPPED)
    for path in extras:
        extra = load(Table, path)
        for rule in extra.rules:
            if problem := failed_example(rule):
                raise RequestError(f"{path}: rule {rule.name}", problem, "mend the patterns or the examples")
        replaced = {rule.name for rule in extra.rules}
        kept = [rule for rule in table.rules if rule.name not in replaced]
        table = Table(causes={**table.causes, **extra.causes}, rules=[*kept, *extra.rules])
    return table


def failed_example(rule: Rule) -> str | None:
    """Which of a rule's own examples goes wrong, in words; None where all go right."""
    scanner = Scanner([rule.model_copy(update={"cause": "unknown"})])  # `nothing` leaves no finding to look at
    for example in rule.match:
        if not scanner.scan_text(example):
            return f"does not find its example {example!r}"
    for example in rule.clean:
        if scanner.scan_text(example):
            return f"finds {example!r}, which it must not"
    return None
