"""The real NeMo 2 reads packed files: run by an interpreter that has nemo_toolkit (`make nemo-env`).

    packed_nemo_side.py JOB.json

For each named file of the job NeMo's own `create_sft_dataset` opens it, and the batches of all its bins, one bin a
batch and two bins a batch, go into OUT.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nemo.collections.llm.gpt.data.core import GPTSFTPackedDataset, create_sft_dataset


def batch(dataset: Any, indices: list[int]) -> dict[str, Any]:
    made = dataset.collate_fn([dataset[index] for index in indices])
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in made.items()}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    found = {}
    for name, file in job["files"].items():
        dataset = create_sft_dataset(
            Path(file["data"]),
            SimpleNamespace(eos_id=job["eos_id"]),
            seq_length=file["pack_size"],
            pad_to_max_length=True,
            pad_cu_seqlens=file["pad_cu_seqlens"],
            pack_metadata_file_path=file["metadata"],
            get_attention_mask_from_fusion=True,
        )
        assert isinstance(dataset, GPTSFTPackedDataset)
        bins = range(len(dataset))
        found[name] = {
            "single": [batch(dataset, [index]) for index in bins],
            "pairs": [batch(dataset, [index, index + 1]) for index in bins[:-1:2]],
        }
    Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
