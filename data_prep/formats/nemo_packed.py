"""NeMo's packed sequences: a `.npy` with a pickled array of dicts, as NeMo 2's GPTSFTPackedDataset loads it.

What makes training data for the `nemo` engine calls it. The file is written as a stream: the array and its dicts are
put into pickle's opcodes here, since `numpy.save` wants all of them in memory as Python objects first.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from data_prep.formats.packed_rows import Chunk, bins_in_chunk, pack_file
from reasonforge.errors import RequestError
from reasonforge.files import published, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK_BINS = 64


def write_nemo_packed(
    tokens: Path, destination: Path, *, pack_size: int, seed: int = 0, dropped: Path | None = None
) -> dict[str, Any]:
    """Pack a tokens.parquet into NeMo's format; returns the packing's figures.

    Two files are published by rename: `destination`, an object array of one dict for each bin, and beside it
    STEM_metadata.json, NeMo's list of one entry on it. In a dict, `input_ids` are the tokens of all rows, `loss_mask`
    has for each token whether the next one is learned (rolled already, False at each row's end), and `seq_start_id`
    where each row begins. Both are those of `nemo/utils/sequence_packing_utils.py` (nemo_toolkit 2.7.3).

    Memory is bounded, with a few numbers for each row; on the disk, 4 bytes a token beside `destination` meanwhile.
    NeMo itself then holds the whole file in memory, at some 45 bytes a token.

    Args:
        tokens: what `data_prep.tokenization.dataset` writes.
        destination: ends in .npy, without which NeMo does not take it.
        pack_size: the most tokens in a bin, where a row counts one less than it has; NeMo's packed_sequence_size.
        seed: of the order of the bins.
        dropped: where rows that no bin takes are listed; without it they are refused.

    Raises RequestError as `pack_file` does, and for a destination of another kind.
    """
    if destination.suffix != ".npy":
        raise RequestError(str(destination), "NeMo takes packed sequences only from a .npy file", "name it so")
    packed = pack_file(tokens, pack_size, seed=seed, dropped=dropped)
    metadata = destination.with_name(f"{destination.stem}_metadata.json")
    with published(destination, before=partial(write_json, metadata, [packed.metadata()])) as handle:
        _write_head(handle, len(packed.packing))
        for chunk in packed.chunks(destination.parent, bins_in_chunk(pack_size, CHUNK_BINS)):
            handle.writelines(_dicts(chunk))
        handle.write(_TAIL)
    return packed.summary()


def _write_head(handle: IO[bytes], bins: int) -> None:
    """The `.npy` header, and the pickle up to the first element."""
    import numpy as np
    from numpy.lib.format import write_array_header_1_0

    write_array_header_1_0(handle, {"descr": "|O", "fortran_order": False, "shape": (bins,)})
    handle.write(_HEAD % _integers(np.array([bins])))


# What numpy.ndarray.__reduce__ says of an object array of one dimension, up to the list of its elements. A frame and a
# memo, which only serve speed and sharing, are left out. numpy.core is the name that NumPy 1 and 2 both know.
_HEAD = (
    b"\x80\x04"
    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
    b"(K\x01%b\x85"
    b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8\x89\x88tR(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb"
    b"\x89]("
)
_TAIL = b"etb."
_TRUE, _FALSE = 0x88, 0x89  # NEWTRUE, NEWFALSE


def _dicts(chunk: Chunk) -> Iterator[bytes]:
    """Each bin as a pickled dict."""
    import numpy as np

    tokens = chunk.bin_starts.tolist()
    row_starts = np.split(chunk.row_starts, np.cumsum(chunk.bins)[:-1])
    for begin, end, starts in zip(tokens[:-1], tokens[1:], row_starts, strict=True):
        mask = np.where(chunk.mask[begin:end], _TRUE, _FALSE).astype(np.uint8).tobytes()
        values = {"input_ids": _integers(chunk.ids[begin:end]), "loss_mask": mask, "seq_start_id": _integers(starts)}
        lists = b"".join(_text(key) + b"](" + value + b"e" for key, value in values.items())
        yield b"}(" + lists + b"u"


def _text(text: str) -> bytes:
    """BINUNICODE."""
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def _integers(values: "NDArray[np.integer[Any]]") -> bytes:
    """Each of some integers, 0 to 2**31 - 1, as pickle writes it: BININT1, BININT2 or BININT, by its size."""
    import numpy as np

    table = np.empty((len(values), 5), np.uint8)
    table[:, 1:] = np.ascontiguousarray(values, "<i4").view(np.uint8).reshape(-1, 4)
    short, middle = values < 1 << 8, values < 1 << 16
    table[:, 0] = np.where(short, ord("K"), np.where(middle, ord("M"), ord("J")))
    used = np.ones(table.shape, np.bool_)
    used[:, 2] = ~short
    used[:, 3:] = ~middle[:, None]
    return table[used].tobytes()
