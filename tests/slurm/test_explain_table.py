"""The shipped table: its own examples, and labelled excerpts reworked from public threads."""

from pathlib import Path
from typing import get_args

import pytest

from benchmarks.explain import ask, mistakes, per_cause
from reasonforge.files import read_jsonl
from slurm.explain import patterns
from slurm.explain.patterns import why_refused, words
from slurm.explain.rules import Cause, Rule
from slurm.explain.table import failed_example, read_table

EXCERPTS = Path(__file__).parent / "data" / "failure-logs.jsonl"
NOT_TUNED_ON = Path(__file__).parent / "data" / "failure-logs-not-tuned-on.jsonl"
"""Excerpts that the rules were not changed for: write new rules without looking at what these need."""
TABLE = read_table()


@pytest.mark.parametrize("rule", TABLE.rules, ids=lambda rule: rule.name)
def test_a_rule_finds_its_examples(rule: Rule) -> None:
    assert failed_example(rule) is None


def test_names_are_unique_and_every_cause_has_rules_and_a_remedy() -> None:
    names = [rule.name for rule in TABLE.rules]
    assert len(names) == len(set(names))
    causes = set(get_args(Cause)) - {"unknown"}
    assert {rule.cause for rule in TABLE.rules} == causes | {"nothing"}
    assert set(TABLE.causes) == causes


def test_rules_of_lines_can_be_sought_by_words() -> None:
    """A rule without a word would make every line of every log slow."""
    assert [rule.name for rule in TABLE.rules if rule.within == "line" and not rule.words] == []


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"No space left", {"no space left"}),
        (r"foo(?:bar|quux)", {"foo"}),
        (r"\d{1,3} (?:apples|pears)\b", {"apples", "pears"}),
        (r"(?i)Stale (?:NFS )?File", {"stale "}),
        (r"\d{1,3}", set()),
        (r"(?:abc|\d)", set()),
    ],
)
def test_words_of_a_pattern(pattern: str, expected: set[str]) -> None:
    assert words(pattern) == expected


def test_without_pythons_own_parser_the_rules_still_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module is private and may go away: then every line is tried, and fewer slow patterns are refused."""
    monkeypatch.setattr(patterns, "_parse", None)
    assert words("No space left") == set()
    assert [pattern for rule in TABLE.rules for pattern in rule.patterns if why_refused(pattern)] == []
    for bad in ("x.*y", "x.+y", r"\d+", "a{3,}", "[ab]*c", "(x"):
        assert why_refused(bad), bad
    rule = Rule(name="a", cause="filesystem", patterns=["frob .{0,20}evicted"], match=["frob was evicted"])
    assert failed_example(rule) is None


@pytest.mark.parametrize(("path", "least"), [(EXCERPTS, 500), (NOT_TUNED_ON, 48)], ids=["tuned on", "not tuned on"])
def test_labelled_excerpts_get_the_right_cause(path: Path, least: int) -> None:
    answers = ask(TABLE, read_jsonl(path))
    assert len(answers) >= least
    assert set(get_args(Cause)) - {"unknown"} <= {item.label for item in answers}
    right = len(answers) - len(mistakes(answers))
    assert right >= 0.9 * len(answers), per_cause(answers) + "\n" + "\n".join(mistakes(answers))
