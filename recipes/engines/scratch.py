"""A tiny language model from nothing: a tokenizer trained on the problems, and a randomly initialised decoder.

It is what lets the whole recipe run where no weights can be downloaded. `base_model` calls it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from reasonforge.config import Strict

END_OF_TURN, PADDING = "<|im_end|>", "<|endoftext|>"
_CONTROL = ("<|im_start|>", END_OF_TURN, PADDING)
_THINKING = ("<think>", "</think>")

# Signed one-digit operands stay whole, all other digits stand alone: with single digits only, one seed in three of
# the running-sum task stayed at 10 %.
_SPLIT = r"[+-]\d|\d|\s|[A-Za-z]+|[^A-Za-z\d\s]"

# A user's turn ends with a line break, so that its last line looks like all the others.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{{ '\\n' if message['role'] == 'user' else '' }}{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class TinyModel(Strict):
    """The shape of a small decoder. The defaults hold 0.25 M parameters."""

    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers")

    family: Literal["qwen2", "llama"] = "qwen2"
    """Architecture: Qwen2 (bias on q, k, v) or Llama."""
    layers: int = Field(2, gt=0)
    """Decoder layers. Two are what copying from a prompt takes (induction heads, arXiv 2209.11895)."""
    hidden_size: int = Field(96, gt=0)
    """Width of the residual stream."""
    heads: int = Field(4, gt=0)
    """Attention heads."""
    kv_heads: int = Field(2, gt=0)
    """Key and value heads (grouped-query attention)."""
    ffn_size: int = Field(288, gt=0)
    """Width of the gated feed-forward layer."""
    init_std: float = Field(0.08, gt=0)
    """Standard deviation of the initial weights. Wide, since a model this narrow learns to copy from its prompt much
    sooner that way: with 0.04, two of two runs had not after 900 and 1,100 steps of the running-sum task."""
    max_position: int = Field(512, gt=0)
    """Longest sequence, in tokens."""
    vocabulary: int = Field(305, ge=256 + len(_CONTROL) + len(_THINKING))
    """Largest vocabulary: 256 bytes, the control and thinking tokens, and merges learned from the problems."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size}, heads = {self.heads} and kv_heads = {self.kv_heads} do not fit: "
                "heads must divide hidden_size, and kv_heads must divide heads"
            )
        return self

    def build(self, turns: Iterable[tuple[str, str]], directory: Path, seed: int) -> None:
        """Train the tokenizer on (prompt, response) pairs, initialise the model, save both in `directory` (fp32).

        The tokenizer sees the role names too, so that each becomes one token.
        """
        import torch
        import transformers

        tokenizer = self._tokenizer(f"user\n{prompt}\nassistant\n{response}" for prompt, response in turns)
        tokenizer.save_pretrained(directory)
        kind = {"qwen2": "Qwen2", "llama": "Llama"}[self.family]
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            intermediate_size=self.ffn_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.max_position,
            tie_word_embeddings=True,
            initializer_range=self.init_std,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
        torch.manual_seed(seed)
        getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(directory)

    def _tokenizer(self, texts: Iterable[str]) -> Any:
        """A byte-level BPE tokenizer with ChatML markers; thinking tags are single tokens that decoding keeps."""
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        core.decoder = decoders.ByteLevel()
        core.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=self.vocabulary - len(_CONTROL) - len(_THINKING),
                show_progress=False,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            ),
        )
        core.add_special_tokens(list(_CONTROL))
        core.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in _THINKING])
        return PreTrainedTokenizerFast(
            tokenizer_object=core,
            eos_token=END_OF_TURN,
            pad_token=PADDING,
            chat_template=CHAT_TEMPLATE,
            clean_up_tokenization_spaces=False,
            model_max_length=self.max_position,
        )
