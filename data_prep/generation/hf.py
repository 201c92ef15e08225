"""Samples from a local transformers model, in batches of fixed composition, so that kills do not change the output.

The `generate` stage calls it as its engine of type `hf`, and the `evaluate` stage for every model.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from data_prep.generation.engine import TraceEngine, Work, own_licence
from data_prep.generation.sampling import Row, Sampling, trace_row
from reasonforge.errors import RequestError, StageError
from reasonforge.files import read_jsonl, sha256_text, write_jsonl

WINDOW = 4096
"""Samples among which batches are formed by prompt length, and which are held in memory to restore their order."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class HFEngine(TraceEngine):
    """A causal language model and its chat template, through `generate` of transformers."""

    type: Literal["hf"] = "hf"
    model_path: str | None = None
    """A model directory, or a name on the Hub; null where a stage's input gives the model."""
    licence: str | None = None
    """The model's, for the dataset card: an SPDX identifier ("apache-2.0"), as the Hub has it; null takes what the
    README.md of its directory says."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Sequences sampled together; it decides the random draws, so another size gives other samples."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights; auto takes float32 on a CPU and bfloat16 on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto takes a GPU where there is one."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The framework and the models."""
        return ("torch", "transformers")

    @property
    def external_files(self) -> tuple[Path, ...]:
        """The files of a model directory that the user names: their content decides the output too."""
        if self.model_path is None or not Path(self.model_path).is_dir():
            return ()
        return tuple(sorted(path for path in Path(self.model_path).iterdir() if path.is_file()))

    def block(self, sampling: Sampling) -> int:
        """Problems that are batched together: a part of the work that begins elsewhere would give other samples."""
        return _window(sampling.samples)

    def found_licences(self, model: Path | None = None) -> dict[str, str]:
        """What the model's directory says."""
        source = self._source(model)
        return own_licence(Path(source).name, self.licence, source)

    def rows(self, work: Work) -> Iterator[Row]:
        """Sample every problem; `model`, where given, comes before `model_path`. Finished batches stay in `scratch`.

        Raises RequestError for a model without tokenizer or chat template, or for a prompt too long for the model.
        """
        source, problems, sampling = self._source(work.model), work.problems, work.sampling
        work.scratch.mkdir(parents=True, exist_ok=True)
        with work.progress("sampling", len(problems) * sampling.samples, "samples") as counter:
            sampler = _Sampler.load(source, self, sampling)
            prompts = sampler.render(problems)
            units = list(_units(prompts, sampling.samples, self.batch_size))
            window = self.block(sampling)
            before = work.first // window * -(-window * sampling.samples // self.batch_size)
            paths = [work.scratch / f"unit-{index:06d}.jsonl" for index in range(len(units))]
            counter.resume(sum(len(unit) for unit, path in zip(units, paths, strict=True) if path.exists()))
            for index, (unit, path) in enumerate(zip(units, paths, strict=True)):
                if path.exists():
                    continue
                unit_seed = int(sha256_text(f"{work.seed}\n{before + index}")[:8], 16)
                outputs = sampler.sample([prompts[position] for position, _ in unit], unit_seed)
                write_jsonl(path, _unit_rows(problems, unit, outputs, Path(source).name))
                counter.advance(len(unit))
        yield from _in_order(units, paths)

    def _source(self, model: Path | None) -> str:
        source = str(model or self.model_path or "")
        if not source:
            raise RequestError("engine.model_path", "not given, and no input names a model", "set it to a directory")
        return source


_Unit = list[tuple[int, int]]
"""What one batch samples: the index of a problem and the number of a sample, each a sequence."""


@dataclass(frozen=True)
class _Output:
    """What came of one sequence."""

    response: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class _Sampler:
    """A loaded model with its tokenizer and generation settings."""

    model: Any
    tokenizer: Any
    settings: Any
    """A transformers GenerationConfig that holds all of the sampling, so nothing comes from the model's own."""
    hidden: frozenset[int]
    """Token ids that are no part of a response: padding, begin and end. Other special tokens, `<think>` too, are."""

    @classmethod
    def load(cls, source: str, engine: HFEngine, sampling: Sampling) -> "_Sampler":
        """Load from a directory, never asking the Hub for it, or from the Hub by name."""
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        local = Path(source).is_dir()
        if not local and not _HUB_NAME.fullmatch(source):
            raise RequestError(source, "no such model directory")
        tokenizer = _load_tokenizer(source, local)
        device = engine.device if engine.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        dtype = engine.dtype if engine.dtype != "auto" else "float32" if device == "cpu" else "bfloat16"
        try:
            model = AutoModelForCausalLM.from_pretrained(
                source, local_files_only=local, dtype=getattr(torch, dtype), use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise RequestError(source, f"no model that transformers can load: {_one_line(error)}") from None
        own = model.generation_config.eos_token_id
        ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None}
        chosen = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        settings = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=sampling.temperature > 0,
            eos_token_id=sorted(ends),
            pad_token_id=tokenizer.pad_token_id,
            **(chosen if sampling.temperature > 0 else {}),
        )
        model.generation_config = GenerationConfig()
        hidden = frozenset({*ends, tokenizer.pad_token_id, tokenizer.bos_token_id} - {None})
        return cls(model.to(device).eval(), tokenizer, settings, hidden)

    def render(self, problems: Sequence[Row]) -> list[str]:
        """Each problem as the chat template puts it to the model; all must fit with their new tokens."""
        prompts: list[str] = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": problem["prompt"]}], add_generation_prompt=True, tokenize=False
            )
            for problem in problems
        ]
        room = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        encoded = self.tokenizer(prompts, add_special_tokens=False)["input_ids"] if prompts else []
        for problem, ids in zip(problems, encoded, strict=True):
            if room is not None and len(ids) + self.settings.max_new_tokens > room:
                raise RequestError(
                    f"problem {problem['id']}",
                    f"its {len(ids)} tokens and sampling.max_tokens {self.settings.max_new_tokens} are more than the "
                    f"{room} positions of the model",
                    f"set max_tokens to {room - len(ids)} or less" if room > len(ids) else "leave the problem out",
                )
        return prompts

    def sample(self, prompts: list[str], seed: int) -> list[_Output]:
        """Sample one batch; the same prompts and seed give the same outputs on the same machine."""
        import torch

        encoded = self.tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
        encoded = encoded.to(self.model.device)
        torch.manual_seed(seed)
        try:
            with torch.inference_mode():
                sequences = self.model.generate(
                    input_ids=encoded["input_ids"],
                    attention_mask=encoded["attention_mask"],
                    generation_config=self.settings,
                )
        except torch.cuda.OutOfMemoryError:
            raise StageError(
                f"out of GPU memory with {len(prompts)} sequences in a batch; set engine.batch_size lower"
            ) from None
        new = sequences[:, encoded["input_ids"].shape[1] :].tolist()
        lengths = encoded["attention_mask"].sum(dim=1).tolist()
        return [self._output(*parts) for parts in zip(prompts, lengths, new, strict=True)]

    def _output(self, prompt: str, prompt_tokens: int, tokens: list[int]) -> _Output:
        ends = set(self.settings.eos_token_id)
        stop = next((place for place, token in enumerate(tokens) if token in ends), None)
        written = tokens[:stop]
        text = self.tokenizer.decode(
            [token for token in written if token not in self.hidden],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        if prompt.rstrip().endswith("<think>"):  # the template opened the thinking, so the response has to show it
            text = "<think>\n" + text.lstrip("\n")
        reason = "length" if stop is None else "stop"
        return _Output(text, reason, prompt_tokens, len(written) + (stop is not None))


def _load_tokenizer(source: str, local: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local, padding_side="left")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(source, f"no tokenizer that transformers can load: {_one_line(error)}") from None
    if not tokenizer("1 + 1 = 2")["input_ids"]:  # what transformers makes of a directory without tokenizer files
        raise RequestError(source, "its tokenizer has no vocabulary", "put tokenizer.json and its companions there")
    if not tokenizer.chat_template:
        raise RequestError(source, "its tokenizer has no chat template", "add a chat_template.jinja to it")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _window(samples: int) -> int:
    """Problems whose samples are batched together."""
    return max(WINDOW // samples, 1)


def _units(prompts: Sequence[str], samples: int, batch_size: int) -> Iterator[_Unit]:
    """Batches of like prompt lengths. Within a window problems are sorted by length; windows keep their order."""
    step = _window(samples)
    for start in range(0, len(prompts), step):
        window = sorted(range(start, min(start + step, len(prompts))), key=lambda index: len(prompts[index]))
        sequences = [(index, sample) for index in window for sample in range(samples)]
        for first in range(0, len(sequences), batch_size):
            yield sequences[first : first + batch_size]


def _unit_rows(problems: Sequence[Row], unit: _Unit, outputs: list[_Output], teacher: str) -> Iterator[Row]:
    for (index, sample), output in zip(unit, outputs, strict=True):
        yield trace_row(
            problems[index],
            sample,
            output.response,
            teacher=teacher,
            finish_reason=output.finish_reason,
            prompt_tokens=output.prompt_tokens,
            completion_tokens=output.completion_tokens,
        )


def _in_order(units: Sequence[_Unit], paths: Sequence[Path]) -> Iterator[Row]:
    """The rows of all units by problem, then sample: whatever precedes everything still to come is given out."""
    held: dict[tuple[int, int], Row] = {}
    first_left = list(accumulate((min(unit) for unit in reversed(units)), min))[::-1]
    for unit, path, following in zip(units, paths, [*first_left[1:], None], strict=True):
        held |= dict(zip(unit, read_jsonl(path), strict=True))
        for name in sorted(held):
            if following is not None and name > following:
                break
            yield held.pop(name)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."
