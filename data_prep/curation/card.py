"""The dataset card: a README.md that says what a dataset is made of and how, with the front matter that the Hub reads.

The stage `curate` writes it into its artifact. It is a pure function of what is known: the same facts give the same
text. The front matter follows huggingface_hub's `datasetcard.md` specification.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import yaml
from pydantic import Field

from reasonforge.config import Strict

_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B",
          "10B<n<100B", "100B<n<1T")  # fmt: skip
_LARGEST = "n>1T"
_KINDS = {"problems": "Problems", "traces": "Traces"}


class Card(Strict):
    """What the recipe says of a dataset that its making does not tell."""

    title: str = "Curated reasoning traces"
    """Its heading."""
    licence: str | None = None
    """Under which the dataset is given, as the Hub names licences ("apache-2.0"); null says "unknown". What it is made
    of may bind it: the card lists the licences that sources and models have in the recipe, or models say themselves."""
    language: list[str] = Field(default_factory=list)
    """ISO 639-1 codes."""
    tags: list[str] = Field(default_factory=list)
    """Further tags; `reasoning` and `reasonforge` are there."""


@dataclass(frozen=True)
class Origin:
    """A stage that the dataset comes from."""

    name: str
    kind: str
    """Of artifact: problems, traces."""
    digest: str
    """The SHA-256 over the artifact's files."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """All that decided its content: sources, teacher, sampling, seed."""
    licences: Mapping[str, str] = field(default_factory=dict)
    """What models say of themselves, by their names."""


@dataclass(frozen=True)
class Facts:
    """What is known once the dataset is made."""

    origins: Sequence[Origin]
    """In the order of the work."""
    steps: Mapping[str, Any]
    """The curation's own options."""
    funnel: Mapping[str, Any]
    """As funnel.json has it."""
    rows: int
    """In dataset.jsonl."""


def dataset_card(card: Card, facts: Facts) -> str:
    """The card's text: front matter, what is in the files, where it is from, how it was curated, and the licences."""
    parts = [
        f"---\n{_yaml(_front_matter(card, facts.rows))}---\n",
        f"# {card.title}\n",
        "Made by reasonforge. `dataset.jsonl` holds the rows that were kept, `dropped.jsonl` all others with the step "
        "and the reason, `funnel.json` the counts below.\n",
        "## Funnel\n",
        _funnel(facts.funnel),
        *_verdicts(facts.funnel),
        *_tokens(facts.funnel),
        "## Provenance\n",
        *(part for origin in facts.origins for part in _origin(origin)),
        "## Curation\n",
        f"```yaml\n{_yaml(facts.steps)}```\n",
        "## Licences\n",
        _licences(card, facts),
    ]
    return "\n".join(parts)


def _front_matter(card: Card, rows: int) -> dict[str, Any]:
    return {
        "license": card.licence or "unknown",
        **({"language": card.language} if card.language else {}),
        "pretty_name": card.title,
        "tags": list(dict.fromkeys(["reasoning", "reasonforge", *card.tags])),
        "task_categories": ["text-generation"],
        "size_categories": [_size(rows)],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "dataset.jsonl"}]}],
    }


def _size(rows: int) -> str:
    power = max(len(str(rows)) - 3, 0)
    return _SIZES[power] if power < len(_SIZES) else _LARGEST


def _funnel(funnel: Mapping[str, Any]) -> str:
    rows = [[step["step"], f"{step['in']:,}", f"{step['out']:,}", _counts(step["dropped"])] for step in funnel["steps"]]
    return _table(["step", "rows in", "rows out", "dropped"], rows)


def _verdicts(funnel: Mapping[str, Any]) -> Iterator[str]:
    if found := {name: count for name, count in funnel.get("verdicts", {}).items() if count}:
        yield f"Verdicts: {_counts(found)}.\n"


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counted.items())


def _tokens(funnel: Mapping[str, Any]) -> Iterator[str]:
    if tokens := funnel.get("completion_tokens"):
        yield "## Tokens of the responses\n"
        mean = round(tokens["total"] / tokens["rows"])
        yield f"{tokens['total']:,} in {tokens['rows']:,} rows, {mean:,} on average, {tokens['longest']:,} at most.\n"
        edges = tokens["edges"]
        lengths = (f"{low:,} to {high - 1:,}" for low, high in pairwise(edges))
        yield _table(["tokens", "rows"], ([span, f"{n:,}"] for span, n in zip(lengths, tokens["counts"], strict=True)))


def _origin(origin: Origin) -> Iterator[str]:
    yield f"### {_KINDS.get(origin.kind, origin.kind)}: stage `{origin.name}`\n"
    yield f"SHA-256 over its files: `{origin.digest}`\n"
    if origin.config:
        yield f"```yaml\n{_yaml(origin.config)}```\n"


def _licences(card: Card, facts: Facts) -> str:
    rows = [["this dataset", card.licence or "not said"]]
    for origin in facts.origins:
        said = ((f"{origin.name}: {name}", licence) for name, licence in origin.licences.items())
        found = [*_given_licences(origin.config, origin.name), *said]
        rows += [[place, licence] for place, licence in found] or [[origin.name, "not said"]]
    return _table(["of", "licence"], rows)


def _given_licences(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Each `licence` in a configuration, with its place."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "licence" and isinstance(inner, str):
                yield place, inner
            yield from _given_licences(inner, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _given_licences(inner, f"{place}.{number}")


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    """A text that cannot end a table's cell, begin a tag or a line."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
