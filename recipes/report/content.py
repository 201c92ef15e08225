"""All that a report says, gathered from the input artifacts once, and as JSON.

The report stage calls `gather`; `page` and `markdown` only lay out what is in `Content`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from reasonforge.artifacts import Artifact
from recipes.accounting import Usage
from recipes.evaluation.scoring import Interval, Scores, compare, read_scores
from recipes.report.curves import Curve, read_curves
from recipes.report.funnel import Funnel, read_funnel
from recipes.report.ledger import Entry, ledger
from recipes.report.transcripts import Transcript, choose_transcripts
from recipes.report.wording import Finding, Pair, finding, lone_finding


@dataclass(frozen=True)
class Content:
    """The report. Models are in the recipe's order; the first is the base."""

    scores: dict[str, Scores]
    pairs: list[Pair]
    findings: list[Finding]
    """One a pair; one for a model that stands alone."""
    transcripts: list[Transcript]
    curves: dict[str, list[Curve]]
    """By model; only models with curves."""
    funnel: Funnel | None
    entries: list[Entry]
    usage: list[Usage]
    """What the stages took of a cluster; empty for a run on one machine."""

    @property
    def first_scores(self) -> Scores:
        """The base's scores; problems, samples and sampling are the same for all."""
        return next(iter(self.scores.values()))

    @property
    def tones(self) -> dict[str, int]:
        """Each model's colour number, the same in every chart."""
        return {
            name: index for index, name in enumerate([*self.scores, *(m for m in self.curves if m not in self.scores)])
        }


def gather(
    scores: Mapping[str, Artifact],
    dataset: Artifact | None,
    training: Mapping[str, Artifact],
    usage: list[Usage],
    *,
    resamples: int,
    seed: int,
) -> Content:
    """Read the artifacts and compare each model with the one before it.

    Raises RequestError where two models were not evaluated alike, or a file is not as its artifact promises.
    """
    found = {name: read_scores(artifact.path / "scores.json") for name, artifact in scores.items()}
    pairs = [
        Pair(before[0], after[0], compare(before, after, resamples=resamples, seed=seed))
        for before, after in pairwise(found.items())
    ]
    findings = [finding(pair, found[pair.after].n) for pair in pairs]
    curves = {name: read_curves(artifact.path) for name, artifact in training.items()}
    return Content(
        scores=found,
        pairs=pairs,
        findings=findings or [lone_finding(*next(iter(found.items())))],
        transcripts=choose_transcripts(found, {name: a.path / "samples.jsonl" for name, a in scores.items()}),
        curves={name: logged for name, logged in curves.items() if logged},
        funnel=read_funnel(dataset.path) if dataset else None,
        entries=ledger([*scores.values(), *([dataset] if dataset else []), *training.values()]),
        usage=usage,
    )


def as_json(content: Content) -> dict[str, Any]:
    """`report.json`: shares are 0..1, differences -1..1, times in seconds."""
    first = content.first_scores
    return {
        "format": 1,
        "evaluation": {
            "n": first.n,
            "problems": first.problems,
            "sampling": first.sampling,
            "grader": first.grader,
            "prompt_sha256": first.prompt_sha256,
        },
        "models": {name: _model(scores) for name, scores in content.scores.items()},
        "paired": {pair.name: _intervals(pair.metrics) for pair in content.pairs},
        "findings": [f"{found.headline} {found.detail}" for found in content.findings],
        "training": {
            name: {curve.key: [list(point) for point in curve.points] for curve in curves}
            for name, curves in content.curves.items()
        },
        "funnel": content.funnel.as_json() if content.funnel else None,
        "stages": {
            e.stage: {"type": e.type, "kind": e.kind, **e.cost.model_dump(mode="json")} for e in content.entries
        },
        "cluster": [row.model_dump() for row in content.usage],
        "receipts": {e.stage: {"key": e.key, "digest": e.digest, "inputs": e.inputs} for e in content.entries},
    }


def _model(scores: Scores) -> dict[str, Any]:
    counts = {"problems": scores.problems, "scored": scores.scored, "unparseable_gold": scores.unparseable_gold}
    columns = {**scores.columns.model_dump(), "ties": scores.ties, **counts}
    return {**_intervals(scores.metrics), "columns": columns}


def _intervals(metrics: Mapping[str, Interval]) -> dict[str, Any]:
    return {name: found.model_dump() for name, found in metrics.items()}
