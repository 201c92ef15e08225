"""The types of the table of causes and rules; `rules.yaml` says at its head how a rule is written.

`table` reads the files, `scan` looks for the rules in logs.
"""

import re
from functools import cached_property
from typing import Literal

from pydantic import Field, field_validator

from reasonforge.config import Strict
from slurm.explain.patterns import why_refused, words

Cause = Literal[
    "cuda_oom",
    "host_oom",
    "nccl_timeout",
    "nccl_network",
    "gpu_hardware",
    "node_fail",
    "preempted",
    "time_limit",
    "disk_full_or_quota",
    "filesystem",
    "container_import",
    "missing_dependency",
    "config_error",
    "data_error",
    "checkpoint_mismatch",
    "nan_or_divergence",
    "tokenizer_or_template",
    "ray_bringup",
    "vllm_engine_dead",
    "port_in_use",
    "auth",
    "segfault",
    "python_bug",
    "user_cancelled",
    "unknown",
]

Strength = Literal["proof", "sign", "hint", "guess"]


class CauseEntry(Strict):
    """What holds for a cause whatever rule found it."""

    remedy: str
    """What to do, in one or two sentences."""

    follows: list[Cause] = Field(default_factory=list)
    """Causes that bring this one about: where one of them is seen too, it is the root and this one the cascade."""


class Rule(Strict):
    """Lines that speak for a cause."""

    name: str
    """A name of its own; a user's rule of the same name replaces the shipped one."""

    cause: Cause | Literal["nothing"]
    """The cause; `nothing` for lines that look like an error and are none."""

    strength: Strength = "sign"
    """`proof`: the line says the cause. `sign`: it usually is. `hint`, `guess`: only where nothing better is seen."""

    within: Literal["line", "exception"] = "line"
    """`line`: patterns are sought in every line. `exception`: only in `Type: message` that ends a Python traceback."""

    patterns: list[str] = Field(min_length=1)
    """Regular expressions, any of which is sought; quantifiers need a bound ({0,80} for *)."""

    frames: str | None = None
    """With `within: exception`: what the traceback's lines above the exception must contain as well."""

    unless_above: str | None = None
    """With `within: line`: a line that matches says nothing where this is found in the 30 lines above it."""

    remedy: str = ""
    """What to do, where the cause's own remedy is too general."""

    match: list[str] = Field(min_length=1)
    """Examples that the rule must find."""

    clean: list[str] = Field(default_factory=list)
    """Examples that the rule must not find."""

    @field_validator("patterns")
    @classmethod
    def _are_linear(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            if problem := why_refused(pattern):
                raise ValueError(f"{pattern!r}: {problem}")
        return patterns

    @field_validator("frames", "unless_above")
    @classmethod
    def _is_linear(cls, pattern: str | None) -> str | None:
        if pattern is not None and (problem := why_refused(pattern)):
            raise ValueError(f"{pattern!r}: {problem}")
        return pattern

    @cached_property
    def compiled(self) -> list["re.Pattern[str]"]:
        """The patterns, compiled."""
        return [re.compile(pattern) for pattern in self.patterns]

    @cached_property
    def compiled_frames(self) -> "re.Pattern[str] | None":
        """The frames pattern, compiled."""
        return re.compile(self.frames) if self.frames else None

    @cached_property
    def compiled_unless_above(self) -> "re.Pattern[str] | None":
        """The pattern of lines above that take the meaning away, compiled."""
        return re.compile(self.unless_above) if self.unless_above else None

    @cached_property
    def words(self) -> set[str]:
        """Lower-case words of which a line that matches contains one; empty where every line must be tried."""
        found = [words(pattern) for pattern in self.patterns]
        return set().union(*found) if all(found) else set()


class Table(Strict):
    """Causes and rules, as a file gives them."""

    causes: dict[Cause, CauseEntry] = Field(default_factory=dict)
    """What holds for each cause."""

    rules: list[Rule] = Field(default_factory=list)
    """The rules; of several as strong that match one line, the first one counts."""
