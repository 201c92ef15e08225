"""`python -m benchmarks.tokenization --megatron CHECKOUT`: text to tokens, beside Megatron-LM and transformers.

(a) jsonl to `.bin/.idx` beside Megatron-LM's tools/preprocess_data.py, (b) a larger file beside its
tools/preprocess_data_fast.py --use-gigatoken, (c) chat traces to ids and loss mask beside transformers'
apply_chat_template(return_assistant_tokens_mask=True), "thinking" with a template that sets the thinking apart as that
of Qwen 3 does. Every run is a process of its own, in turns; CPU seconds are
those of its whole tree, and memory is the peak of the tree's proportional set size. What both write is compared.
"workers" (asked for with --parts) is the whole stage on the chats with two workers beside one. "Without start-up"
leaves out the imports, the loading of the tokenizer and its trial on the first rows, the same for any input. The
texts are generated and the byte-level BPE tokenizer is trained on them, once, in a directory that is kept.
"""

import argparse
import hashlib
import importlib.util
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reasonforge.progress import Progress

ROOT = Path(__file__).parents[1]
SAMPLING_S = 0.2
VOCABULARY = 48_000
TARGETS = {
    "small": (20.0, 1.0),
    "large": (2.5, 3.0),
    "chat": (30.0, 1.0),
    "thinking": (30.0, 1.0),
    "workers": (1.0, 1.0),
}
"""How many times fewer CPU seconds, and how many times less memory, than the peer."""

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen 2's tokenizer splits."""
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{% set content = message['content'] %}{% set thought = '' %}{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Sets the thinking apart as the template of Qwen 3 does."""
_CHAT_PARTS = ("chat", "thinking", "workers")
_SYLLABLES = [
    "ba", "be", "ca", "ce", "co", "da", "de", "di", "do", "el", "en", "er", "fa", "fo", "ga", "gi", "gra", "ha",
    "he", "hi", "in", "ka", "la", "le", "li", "lo", "ma", "me", "mi", "mo", "na", "ne", "no", "on", "or", "pa",
    "pe", "per", "po", "pre", "ra", "re", "ri", "ro", "sa", "se", "si", "so", "sta", "ta", "te", "ti", "to", "tra",
    "tu", "un", "ur", "va", "ve", "vi", "za",
]  # fmt: skip


@dataclass
class Measured:
    """The figures of one way, over its rounds."""

    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    pss_mib: list[float] = field(default_factory=list)
    body_s: list[float] = field(default_factory=list)
    """CPU seconds without start-up, of what says so."""


def main() -> None:
    """Prepare the inputs, measure what was asked for and print the table; exit code 1 where outputs differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megatron", type=Path, help="a checkout of Megatron-LM, which this Python can run")
    parser.add_argument("--parts", nargs="+", choices=list(TARGETS), default=["small", "large", "chat"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small-mb", type=float, default=28)
    parser.add_argument("--large-mb", type=float, default=400)
    parser.add_argument("--chats", type=int, default=5000)
    default = Path(tempfile.gettempdir()) / "reasonforge-tokenization"
    parser.add_argument("--directory", type=Path, default=default, help="where inputs are kept (%(default)s)")
    parser.add_argument("--ours", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        ours(*options.ours)
        return
    options.directory.mkdir(parents=True, exist_ok=True)
    prepare(options)
    print("| part | way | CPU s | of | wall s | peak PSS MiB | CPU ratio | memory ratio |\n|" + "---|" * 8, flush=True)
    same = [measure(part, options) for part in options.parts]
    if not all(same):
        sys.exit("the outputs differ")


def prepare(options: argparse.Namespace) -> None:
    """Make the tokenizer and the inputs that are not there yet."""
    directory = options.directory
    if not (directory / "model" / "tokenizer.json").is_file():
        train(directory / "model")
    if "thinking" in options.parts:
        model = shutil.copytree(directory / "model", model_of("thinking", directory), dirs_exist_ok=True)
        (model / "chat_template.jinja").write_text(_THINKING)
    sizes = {"small": options.small_mb, "large": options.large_mb}
    for name, size in sizes.items():
        path = directory / f"{name}-{size:g}.jsonl"
        if name in options.parts and not path.is_file():
            rows = ({"id": number, "text": text} for number, text in enumerate(texts(1, int(size * 1e6))))
            write(path, rows)
    path = directory / f"chat-{options.chats}.jsonl"
    if {*_CHAT_PARTS} & {*options.parts} and not path.is_file():
        answers = itertools.islice(texts(2, 1 << 40), options.chats)
        write(path, ({"id": f"c{n}", "prompt": text[:300].strip(),
                      "response": f"<think>\n{text}\n</think>\n\\boxed{{{n}}}"}
                     for n, text in enumerate(answers)))  # fmt: skip


def model_of(part: str, directory: Path) -> Path:
    """The tokenizer of a part, with its chat template."""
    return directory / ("model-thinking" if part == "thinking" else "model")


def measure(part: str, options: argparse.Namespace) -> bool:
    """Run ours and the peer in turns and print a row for each; False where what they made differs."""
    directory = options.directory
    documents = {"small": f"small-{options.small_mb:g}.jsonl", "large": f"large-{options.large_mb:g}.jsonl"}
    source = directory / documents.get(part, f"chat-{options.chats}.jsonl")
    ours_as = [sys.executable, "-m", "benchmarks.tokenization", "--ours"]
    ways = {"reasonforge": [*ours_as, part, source, directory]}
    if part == "workers":
        ways = {f"{count} workers": [*ours_as, f"workers-{count}", source, directory] for count in (2, 1)}
    peer = find_peer(part, options.megatron, source, directory)
    if peer is None:
        pass
    elif isinstance(peer, str):
        print(f"| {part} | {peer} | – | – | – | – | – | – |")
    else:
        ways[peer[0]] = peer[1]
    found = {name: Measured() for name in ways}
    outputs: dict[str, str] = {}
    for number in range(options.rounds):
        for name in list(ways) if number % 2 else reversed(ways):
            for path in directory.glob("out-*"):
                path.unlink()
            printed = run(list(map(str, ways[name])), options.megatron, found[name])
            if part in ("chat", "thinking"):
                body, printed = printed.split()
                found[name].body_s.append(float(body))
            outputs[name] = digest(directory, printed)
    report(part, found)
    return len(set(outputs.values())) == 1


def find_peer(part: str, megatron: Path | None, source: Path, directory: Path) -> tuple[str, list[Any]] | str | None:
    """The peer's name and command, or why there is none; None where we are compared with ourselves."""
    if part == "workers":
        return None
    if part in ("chat", "thinking"):
        if importlib.util.find_spec("transformers") is None:
            return "no peer: transformers is not installed"
        return "transformers apply_chat_template", [sys.executable, "-c", _CHAT_PEER, model_of(part, directory), source]
    tool = {"small": "preprocess_data.py", "large": "preprocess_data_fast.py"}[part]
    if megatron is None or not (megatron / "tools" / tool).is_file():
        where = "--megatron is not given" if megatron is None else f"{megatron} has no tools/{tool}"
        return f"no peer: {where}"
    more = ["--workers", "1"] if part == "small" else ["--use-gigatoken"]
    return f"Megatron-LM {tool}", [
        sys.executable, megatron / "tools" / tool, "--input", source, "--output-prefix", directory / "out-peer",
        "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", directory / "model", "--append-eod", *more,
    ]  # fmt: skip


_CHAT_PEER = """
import hashlib, json, sys, time
import numpy as np
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True)
found, masks, body = hashlib.sha256(), hashlib.sha256(), 0.0
for line in open(sys.argv[2], encoding="utf-8"):
    started = time.process_time()
    row = json.loads(line)
    chat = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    made = tokenizer.apply_chat_template(chat, return_assistant_tokens_mask=True, return_dict=True)
    ids, mask = made["input_ids"], made["assistant_masks"]
    body += time.process_time() - started
    last = len(mask) - mask[::-1].index(1)
    found.update(np.array(ids[:last], np.int32).data)
    masks.update(np.array(mask[:last], np.int8).data)
print(body, found.hexdigest() + masks.hexdigest())
"""


def ours(part: str, source: str, directory: str) -> None:
    """The same work by data_prep, in this process."""
    model = model_of(part, Path(directory))
    if part.startswith("workers"):
        from data_prep.tokenization.dataset import tokenize_file

        with (
            tempfile.TemporaryDirectory(dir=directory) as place,
            Progress("tokenizing", 0, "shards") as progress,
        ):
            out, workers = Path(place), int(part.rpartition("-")[2])
            tokenize_file(
                Path(source), model, out, max_tokens=1 << 20, scratch=out / "s", workers=workers, progress=progress
            )
            with open(out / "tokens.parquet", "rb") as handle:
                written = hashlib.file_digest(handle, "sha256").hexdigest()
        print(written)
        return
    if part not in ("chat", "thinking"):
        from data_prep.formats.megatron_indexed import Plan, write_indexed

        with tempfile.TemporaryDirectory(dir=directory) as scratch, Progress("tokenizing", 0, "shards") as progress:
            plan = Plan(Path(source), model, append_eod=True)
            write_indexed(plan, Path(directory) / "out-ours", scratch=Path(scratch), workers=1, progress=progress)
        return
    import numpy as np

    from data_prep.formats.tokens_parquet import completion_mask
    from data_prep.tokenization.dataset import Tokenization, tokenizer_of
    from data_prep.tokenization.rows import read_chats

    tokenizer = tokenizer_of(Tokenization(Path(source), model, 1 << 20))
    found, masks, body = hashlib.sha256(), hashlib.sha256(), 0.0
    chats = read_chats(Path(source), (0, Path(source).stat().st_size))
    while True:
        started = time.process_time()
        some = next(chats, None)
        if some is not None:
            batch = tokenizer.encode_batch(some.prompts, some.responses)
            mask = completion_mask(batch.lengths, batch.prompts)
        body += time.process_time() - started
        if some is None:
            break
        if batch.dropped:
            sys.exit(f"rows were dropped: {batch.dropped}")
        found.update(np.ascontiguousarray(batch.ids).data)
        masks.update(mask.data)
    print(body, found.hexdigest() + masks.hexdigest())


def run(command: Sequence[str], megatron: Path | None, into: Measured) -> str:
    """Run a process to its end, noting its tree's CPU time and memory; returns the last line that it printed."""
    paths = [str(ROOT), *([str(megatron.resolve())] if megatron else []), *os.environ.get("PYTHONPATH", "").split(":")]
    environment = {
        **os.environ, "PYTHONPATH": ":".join(filter(None, paths)), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    started, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(list(command), env=environment, stdout=log, stderr=subprocess.STDOUT)
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                process.returncode = os.waitstatus_to_exitcode(status)
                break
            peak = max(peak, tree_pss(process.pid))
            time.sleep(SAMPLING_S)
        log.seek(0)
        printed = log.read().strip().splitlines()
    if process.returncode:
        sys.exit("\n".join([*printed[-15:], f"{command[1]} failed"]))
    into.cpu_s.append(usage.ru_utime + usage.ru_stime)
    into.wall_s.append(time.monotonic() - started)
    into.pss_mib.append(peak / 1024)
    return printed[-1] if printed else ""


def tree_pss(process: int) -> int:
    """The proportional set size of a process and all below it, in KiB."""
    try:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:  # it has just ended
        return 0
    own = next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return own + sum(tree_pss(int(child)) for child in children)


def digest(directory: Path, printed: str) -> str:
    """One hash for what a run made: its files, or for chats the hash that it printed."""
    files = sorted(directory.glob("out-*_text_document.*"), key=lambda path: path.suffix)
    if not files:
        return printed
    hashes = []
    for path in files:
        with open(path, "rb") as handle:
            hashes.append(path.suffix + hashlib.file_digest(handle, "sha256").hexdigest())
    return " ".join(hashes)


def report(part: str, found: dict[str, Measured]) -> None:
    """A row for each way; the first is ours, and the others are compared with it."""
    mine = next(iter(found.values()))
    for name, figures in found.items():
        memory = max(figures.pss_mib)
        wall = statistics.median(figures.wall_s)
        for kind in ("cpu_s", "body_s"):
            if not (seconds := getattr(figures, kind)):
                continue
            ratios = ["1", "1"]
            if figures is not mine:
                got = statistics.median(seconds) / statistics.median(getattr(mine, kind)), memory / max(mine.pss_mib)
                ratios = [f"{ratio:.1f} (at least {least:g})" for ratio, least in zip(got, TARGETS[part], strict=True)]
            title = part if kind == "cpu_s" else f"{part}, without start-up"
            spread = f"{min(seconds):.2f}–{max(seconds):.2f}"
            cells = [title, name, f"{statistics.median(seconds):.2f}", spread, f"{wall:.2f}", f"{memory:.0f}", *ratios]
            print(f"| {' | '.join(cells)} |", flush=True)


def texts(seed: int, characters: int) -> Iterator[str]:
    """Made-up words by Zipf's law with numbers, formulas, code and some Chinese; about 2,800 characters each."""
    chance = random.Random(seed)
    words = lexicon()
    weights = list(itertools.accumulate(1 / (rank + 5) for rank in range(len(words))))
    while characters > 0:
        chosen = chance.choices(words, cum_weights=weights, k=int(chance.lognormvariate(5.55, 0.6)) + 1)
        pieces = []
        while chosen:
            length = chance.randrange(5, 16)
            sentence, chosen = " ".join(chosen[:length]), chosen[length:]
            number, other = chance.randrange(10_000), chance.randrange(100)
            end = chance.choice(
                [". ", ". ", ".\n", "? ", ":\n\n", f" = {number}. ", f" \\frac{{{number}}}{{{other}}} + x^2.\n",
                 " → ", f"\n    return x_{other}\n"]
            )  # fmt: skip
            pieces.append(sentence[:1].upper() + sentence[1:] + end)
        if chance.random() < 0.02:
            pieces.append("".join(chr(chance.randrange(0x4E00, 0x5000)) for _ in range(60)))
        text = "".join(pieces)
        characters -= len(text)
        yield text


def lexicon() -> list[str]:
    """30,000 made-up words, in an order of their own."""
    chance = random.Random(7)
    found: dict[str, None] = {}
    while len(found) < 30_000:
        word = "".join(chance.choices(_SYLLABLES, k=chance.randrange(1, 5)))
        word += chance.choice(["", "s", "ing", "ed", "n", "tion", "ly", ""])
        found[word + chance.choice("éüñö") if chance.random() < 0.01 else word] = None
    return list(found)


def write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Write rows as jsonl, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    temporary.replace(path)


def train(directory: Path) -> None:
    """Train a byte-level BPE tokenizer like Qwen 2's, with ChatML, and save it as a model directory has it."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_SPLIT), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(texts(0, 10_000_000), trainer)
    core.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    core.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")])
    temporary = directory.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    core.save(str(temporary / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (temporary / "tokenizer_config.json").write_text(json.dumps(config))
    (temporary / "chat_template.jinja").write_text(_CHATML)
    temporary.rename(directory)


if __name__ == "__main__":
    main()
