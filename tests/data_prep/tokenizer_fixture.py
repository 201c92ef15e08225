"""A byte-level BPE tokenizer of a few hundred entries with ChatML markers and thinking tags, saved as a model is."""

import json
from pathlib import Path

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# How GPT-2 and its descendants split: runs of line breaks are one piece, so they may merge across a boundary.
SPLIT = r"'s|'t| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CORPUS = [
    "<think>\nWe add the numbers: 17 + 25 = 42.\n\n\nSo the answer is 42.\n</think>\n\n\nThe answer is \\boxed{42}.",
    "assistant\n\n\nHello there. What is the sum of the first ten numbers?\n\nLet me think step by step.\n\n\n",
    "user\nCompute \\frac{1}{2} + \\frac{1}{3}. Assistant: Hello\n\n\n",
    "a   b   c   d   e   f",
    "\n\n\nabc \n\n\nabc \n\n\nHello\n\n\n",
] * 8


def save_tokenizer(directory: Path, chat_template: str | None = CHATML, eos: str = "<|im_end|>") -> Path:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into a directory."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    core.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    core.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=eos, pad_token="<|endoftext|>", chat_template=chat_template
    )
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(directory))
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    return directory
