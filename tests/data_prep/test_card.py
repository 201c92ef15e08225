from pathlib import Path

import pytest
import yaml

from data_prep.curation.card import Card, Facts, Origin, dataset_card
from reasonforge.files import write_jsonl

FACTS = Facts(
    origins=[
        Origin("problems", "problems", "1" * 64, {"seed": 0, "source": {"type": "file", "licence": "mit"}}),
        Origin("generate", "traces", "2" * 64, {"engine": {"type": "hf", "model": "QwQ"}, "sampling": {"samples": 4}}),
    ],
    steps={"grader": {"type": "exact"}, "filters": [{"type": "correct"}]},
    funnel={
        "steps": [
            {"step": "verify", "in": 12345, "out": 12345, "dropped": {}},
            {"step": "correct", "in": 12345, "out": 12000, "dropped": {"wrong": 300, "a|b <x>": 45}},
        ],
        "verdicts": {"correct": 12000, "wrong": 345, "timeout": 0},
        "completion_tokens": {"rows": 4, "total": 20, "longest": 8, "edges": [4, 8, 16], "counts": [3, 1]},
    },
    rows=12000,
)  # fmt: skip
GOLDEN = """---
license: apache-2.0
language:
- en
pretty_name: Sums
tags:
- reasoning
- reasonforge
- math
task_categories:
- text-generation
size_categories:
- 10K<n<100K
configs:
- config_name: default
  data_files:
  - split: train
    path: dataset.jsonl
---

# Sums

Made by reasonforge. `dataset.jsonl` holds the rows that were kept, `dropped.jsonl` all others with the step and the \
reason, `funnel.json` the counts below.

## Funnel

| step | rows in | rows out | dropped |
| --- | --- | --- | --- |
| verify | 12,345 | 12,345 |  |
| correct | 12,345 | 12,000 | wrong 300, a\\|b &lt;x> 45 |

Verdicts: correct 12,000, wrong 345.

## Tokens of the responses

20 in 4 rows, 5 on average, 8 at most.

| tokens | rows |
| --- | --- |
| 4 to 7 | 3 |
| 8 to 15 | 1 |

## Provenance

### Problems: stage `problems`

SHA-256 over its files: `1111111111111111111111111111111111111111111111111111111111111111`

```yaml
seed: 0
source:
  type: file
  licence: mit
```

### Traces: stage `generate`

SHA-256 over its files: `2222222222222222222222222222222222222222222222222222222222222222`

```yaml
engine:
  type: hf
  model: QwQ
sampling:
  samples: 4
```

## Curation

```yaml
grader:
  type: exact
filters:
- type: correct
```

## Licences

| of | licence |
| --- | --- |
| this dataset | apache-2.0 |
| problems.source | mit |
| generate | not said |
"""


def test_the_card_as_it_is_written() -> None:
    card = Card(title="Sums", licence="apache-2.0", language=["en"], tags=["math", "reasoning"])
    assert dataset_card(card, FACTS) == GOLDEN


@pytest.mark.parametrize(
    ("rows", "size"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (999_999, "100K<n<1M"), (10**9, "1B<n<10B"), (10**13, "n>1T")],
)
def test_what_is_not_said_is_unknown_and_the_size_is_the_hubs(rows: int, size: str) -> None:
    front = yaml.safe_load(dataset_card(Card(), Facts([], {}, {"steps": []}, rows)).split("---\n")[1])
    assert front["license"] == "unknown"
    assert front["size_categories"] == [size]
    assert "language" not in front


def test_the_hubs_own_library_reads_it(tmp_path: Path) -> None:
    """The front matter is valid, and `datasets` takes the rows that were kept, not those that were dropped."""
    from datasets import load_dataset
    from huggingface_hub import DatasetCard

    write_jsonl(tmp_path / "dataset.jsonl", [{"id": "a", "prompt": "q"}])
    write_jsonl(tmp_path / "dropped.jsonl", [{"id": "b", "reason": "wrong"}])
    (tmp_path / "README.md").write_text(dataset_card(Card(licence="mit", language=["en"]), FACTS))
    found = DatasetCard.load(tmp_path / "README.md").data
    assert (found.license, found.language, found.size_categories) == ("mit", ["en"], ["10K<n<100K"])
    rows = load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert {split: list(of) for split, of in rows.items()} == {"train": [{"id": "a", "prompt": "q"}]}
