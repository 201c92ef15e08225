"""The packed files of a tokens artifact, as a recipe asks for them; the stage `tokenize` writes them."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from data_prep.formats.bridge_packed import write_bridge_packed
from data_prep.formats.nemo_packed import write_nemo_packed
from reasonforge.config import Strict

FILES = {"nemo": "packed.npy", "bridge": "packed.idx.parquet"}
"""What each format is called beside tokens.parquet; packed_metadata.json is both formats' metadata."""


class Packed(Strict):
    """Packed sequences: rows share bins of one length, so that little of a batch is padding."""

    formats: list[Literal["nemo", "bridge"]] = Field(min_length=1)
    """Who reads them: `nemo` (NeMo 2, packed.npy), `bridge` (Megatron-Bridge, packed.idx.parquet). The bins are the
    same in both."""
    size: int = Field(ge=1)
    """The most tokens in a bin, where a row counts one less than it has: `packed_sequence_size` of NeMo and Bridge."""
    seed: int = 0
    """Of the order of the bins."""


def write_packed(packed: Packed, directory: Path) -> dict[str, Any]:
    """Pack the tokens.parquet of a directory into files beside it; returns the packing's figures.

    Raises RequestError for a row that no bin takes.
    """
    write = {"nemo": write_nemo_packed, "bridge": write_bridge_packed}
    found: dict[str, Any] = {}
    for name in dict.fromkeys(packed.formats):
        tokens, destination = directory / "tokens.parquet", directory / FILES[name]
        found = write[name](tokens, destination, pack_size=packed.size, seed=packed.seed)
    return {name: value for name, value in found.items() if name != "dropped"}
