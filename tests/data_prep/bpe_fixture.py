"""Small byte-level BPE tokenizers like Qwen 2's (NFC) and Llama 3's (with a first token), trained on the spot."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "<think>\nWe add the numbers: 17 + 25 = 42, don't we?\n</think>\n\nThe answer is \\boxed{42}. ",
    "Ça va être très naïve, straße, ελληνικά, русский язык, 中文字符 日本語 한국어 العربية हिन्दी e\u0301 ",
    "def add(a, b):\n    return a + b\n\n\n    # the sum of two numbers\r\n\t",
] * 6


def save_bpe(
    directory: Path,
    kind: str = "qwen",
    vocabulary: int = 600,
    more_tokens: Sequence[str] = (),
    thinking: Sequence[str] = ("<think>", "</think>", "<think>\n"),
    **config: Any,
) -> Path:
    """Write tokenizer.json and tokenizer_config.json of a tokenizer of a `kind`, qwen or llama.

    Args:
        more_tokens: more special tokens.
        thinking: added tokens that are not special.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    qwen = kind == "qwen"
    core = Tokenizer(models.BPE(ignore_merges=not qwen))
    core.normalizer = normalizers.NFC() if qwen else None
    split = pre_tokenizers.Split(Regex(SPLIT % ("" if qwen else "{1,3}")), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] if qwen else ["<|begin_of_text|>", "<|end_of_text|>"]
    core.add_special_tokens([*specials, *more_tokens])
    core.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in thinking])
    if not qwen:
        begin = ("<|begin_of_text|>", core.token_to_id("<|begin_of_text|>"))
        template = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[begin])
        core.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    directory.mkdir(parents=True, exist_ok=True)
    core.save(str(directory / "tokenizer.json"))
    eos = "<|im_end|>" if qwen else "<|end_of_text|>"
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(told))
    return directory
