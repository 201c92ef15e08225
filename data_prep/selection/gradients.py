"""Gradients of a small proxy model, one for each row: the direction in which learning the row would move the model.

The selections `g_vendi` and `prismatic` choose by them. As in Prismatic Synthesis (Jung et al. 2025, arXiv
2505.20161): the gradient of the response's negative log-likelihood with respect to all parameters of an off-the-shelf
instruction-tuned model, projected by random signs to 1,024 dimensions, of length 1. The work is kept in shards, and a
kill repeats one at most.
"""

import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from data_prep.generation.sampling import MakeProgress
from data_prep.selection.base import Selection, lot
from data_prep.selection.projection import WORD, project
from data_prep.tokenization.chat import ChatTokenizer, Tokenized
from reasonforge.errors import RequestError, StageError
from reasonforge.files import fsync_path, read_jsonl, write_jsonl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHARD_ROWS = 256
"""Rows between two saves: what a kill may cost. Batches do not go beyond it, so it decides the last bits."""

_NO_LIMIT = 1 << 40


class GradientSelection(Selection):
    """The options of the proxy, for the selections by gradients.

    Gradients, 4 KiB a row, lie in the scratch directory, and while rows are chosen also in the memory of the device.
    """

    model_path: str
    """The proxy: a model's directory with its tokenizer and chat template. Qwen2.5-0.5B-Instruct in the paper, where
    an instruction-tuned proxy predicted generalisation better than a base model."""
    max_tokens: int = Field(default=4096, ge=2)
    """Tokens of prompt and response that the proxy sees; of a longer response the loss is on what is before. Our
    choice: it bounds the memory of a step."""
    dimensions: int = Field(default=1024, ge=WORD, multiple_of=WORD)
    """What a gradient is projected to; 1,024 as in the paper. An inner product of two gradients is off by a standard
    deviation of sqrt(2 / dimensions) at most."""
    batch: int = Field(default=4, ge=1)
    """Gradients that are projected at once; each takes as much memory as the model. More are faster, as the signs are
    made once for all."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights and gradients; auto takes float32 on a CPU and bfloat16 on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto takes a GPU where there is one."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What the model learns from."""
        return ("prompt", "response")

    @property
    def needs(self) -> tuple[str, ...]:
        """The framework, the models and the template."""
        return ("numpy", "torch", "transformers", "jinja2")

    @property
    def external_files(self) -> tuple[Path, ...]:
        """The files of the proxy."""
        path = Path(self.model_path)
        return tuple(sorted(found for found in path.iterdir() if found.is_file())) if path.is_dir() else ()

    @property
    def place(self) -> str:
        """The device's name, as torch has it."""
        import torch

        return self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class Gradients:
    """The gradients of all rows of a file."""

    vectors: "NDArray[np.float32]"
    """rows × dimensions, each of length 1, or 0 where there is none; a memory map."""
    reasons: list[str | None] = field(default_factory=list)
    """Why a row has none."""
    lots: "array[int]" = field(default_factory=lambda: array("q"))
    """The lot of each row."""

    def places(self) -> "NDArray[np.int64]":
        """The rows that have a gradient, in the order of their lots."""
        import numpy as np

        have = np.array([reason is None for reason in self.reasons], np.bool_)
        order = np.argsort(np.asarray(self.lots, np.int64), kind="stable")
        return order[have[order]]


def collect(rows: Path, config: GradientSelection, scratch: Path, *, seed: int, progress: MakeProgress) -> Gradients:
    """The gradient of every row; finished shards are kept in `scratch`.

    Raises RequestError where the proxy cannot be loaded, StageError where a gradient is not finite or memory is short.
    """
    import numpy as np

    with open(rows, "rb") as handle:
        total = sum(1 for line in handle if line.strip())
    scratch.mkdir(parents=True, exist_ok=True)
    store = scratch / "gradients.f32"
    with open(store, "ab") as handle:
        handle.truncate(max(total, 1) * config.dimensions * 4)
    vectors = np.memmap(store, np.float32, "r+", shape=(max(total, 1), config.dimensions))
    found = Gradients(vectors[:total])
    proxy: _Proxy | None = None
    source = read_jsonl(rows)
    with progress("gradients", total, "rows") as counter, deterministic():
        for number, start in enumerate(range(0, total, SHARD_ROWS)):
            shard = list(islice(source, SHARD_ROWS))
            found.lots.extend(lot(seed, row["id"]) for row in shard)
            done = scratch / f"gradients-{number:06d}.jsonl"
            if done.exists():
                counter.resume(start + len(shard))
            else:
                proxy = proxy or _Proxy(config, seed)
                reasons = []
                for place, vector in enumerate(proxy.gradients(shard)):
                    vectors[start + place] = 0 if isinstance(vector, str) else vector
                    reasons.append(vector if isinstance(vector, str) else None)
                    counter.advance()
                vectors.flush()
                fsync_path(store)
                write_jsonl(done, ({"reason": reason} for reason in reasons))
            found.reasons += [row["reason"] for row in read_jsonl(done)]
    return found


class _Proxy:
    """The loaded model."""

    def __init__(self, config: GradientSelection, seed: int):
        import torch
        from transformers import AutoModelForCausalLM

        path = Path(config.model_path)
        if not path.is_dir():
            raise RequestError(config.model_path, "no such model directory")
        self._config, self._seed = config, seed
        self._tokenizer = ChatTokenizer(path, _NO_LIMIT)
        dtype = config.dtype if config.dtype != "auto" else "float32" if config.place == "cpu" else "bfloat16"
        try:
            model = AutoModelForCausalLM.from_pretrained(
                path, local_files_only=True, dtype=getattr(torch, dtype), use_safetensors=True
            )
        except (OSError, ValueError) as error:
            problem = f"no model that transformers can load: {' '.join(str(error).split())[:200]}"
            raise RequestError(config.model_path, problem) from None
        self._model = model.to(config.place).eval()
        self._parameters = [one for one in self._model.parameters() if one.requires_grad]

    def gradients(self, rows: Sequence[dict[str, Any]]) -> Iterator["NDArray[np.float32] | str"]:
        """The projected gradient of each row, or why there is none."""
        import torch

        tokenized = [self._cut(found) for found in self._tokenizer.encode(rows)]
        usable = iter([found for found in tokenized if not isinstance(found, str)])
        vectors: list[Any] = []
        try:
            while batch := list(islice(usable, self._config.batch)):
                vectors += self._project(batch)
        except torch.cuda.OutOfMemoryError:
            raise StageError(
                f"out of GPU memory with {self._config.batch} gradients in a batch; set batch or max_tokens lower"
            ) from None
        ready = iter(vectors)
        for row, found in zip(rows, tokenized, strict=True):
            vector = found if isinstance(found, str) else next(ready)
            if vector is None:
                raise StageError(f"row {row['id']}: its gradient is not finite; set dtype to float32")
            yield vector

    def _cut(self, found: Tokenized | str) -> Tokenized | str:
        if isinstance(found, str):
            return found
        if found.prompt_tokens >= self._config.max_tokens:
            return "prompt over max_tokens"
        return Tokenized(found.input_ids[: self._config.max_tokens], found.prompt_tokens, False)

    def _project(self, batch: list[Tokenized]) -> list["NDArray[np.float32] | None"]:
        """Of a few rows; None where one is not finite. A zero gradient stays zero."""
        import torch

        pieces = [torch.empty(len(batch), one.numel(), dtype=one.dtype, device=one.device) for one in self._parameters]
        for number, row in enumerate(batch):
            self._model.zero_grad(set_to_none=True)
            self._loss(row).backward()
            for piece, parameter in zip(pieces, self._parameters, strict=True):
                piece[number] = 0 if parameter.grad is None else parameter.grad.reshape(-1)
        self._model.zero_grad(set_to_none=True)
        vectors = project(pieces, self._config.dimensions, self._seed).double()
        lengths = vectors.norm(dim=1, keepdim=True)
        unit = (vectors / lengths.clamp_min(1e-300)).float().cpu().numpy()
        return [
            vector if fine else None for vector, fine in zip(unit, lengths.isfinite().view(-1).tolist(), strict=True)
        ]

    def _loss(self, row: Tokenized) -> Any:
        """The mean negative log-likelihood of the response's tokens; its scale does not matter."""
        import torch

        ids = torch.tensor([row.input_ids], device=self._config.place)
        logits = self._model(input_ids=ids, use_cache=False).logits[0, row.prompt_tokens - 1 : -1]
        return torch.nn.functional.cross_entropy(logits.float(), ids[0, row.prompt_tokens :])


@contextmanager
def deterministic() -> Iterator[None]:
    """Let torch compute so that the same work gives the same bits again on the same machine."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
