"""What each stage of the run cost and how it came to be, from the receipts of the report's inputs and their lineage."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from reasonforge.artifacts import Artifact, Cost


@dataclass(frozen=True)
class Entry:
    """One stage's receipt, as far as the report shows it."""

    stage: str
    type: str
    kind: str
    key: str
    digest: str
    cost: Cost
    inputs: dict[str, str] = field(default_factory=dict)
    """Input name to the digest of the artifact that went in; empty where the lineage does not say."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Versions of what did the work; only the report's own inputs carry them."""


def ledger(artifacts: Iterable[Artifact]) -> list[Entry]:
    """The stages behind some artifacts, each once, in the order in which they started."""
    entries: dict[str, Entry] = {}
    opened = list(artifacts)
    for artifact in opened:
        for stage, found in artifact.receipt.lineage.items():
            entries.setdefault(stage, _ancestor(stage, found))
    for artifact in opened:
        receipt = artifact.receipt
        entries[receipt.stage] = Entry(
            stage=receipt.stage,
            type=receipt.stage_type,
            kind=receipt.kind,
            key=receipt.key,
            digest=receipt.digest,
            cost=receipt.cost,
            inputs={name: record.digest for name, record in receipt.inputs.items()},
            environment=receipt.environment,
        )
    return sorted(entries.values(), key=lambda entry: (entry.cost.started_at, entry.stage))


def _ancestor(stage: str, found: Mapping[str, Any]) -> Entry:
    return Entry(
        stage=stage,
        type=found["type"],
        kind=found["kind"],
        key=found["key"],
        digest=found["digest"],
        cost=Cost.model_validate(found["cost"]),
        inputs={name: record["digest"] for name, record in found.get("inputs", {}).items()},
    )
