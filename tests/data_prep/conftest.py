"""Fixtures of the data_prep tests: a tiny model from scratch, and progress that is not shown."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizer_fixture import save_tokenizer

from data_prep.sources.problems import RunningSumSource
from reasonforge.progress import Progress

# Before anyone imports torch, and for the processes that tests start: one thread, which does not spin.
os.environ |= {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def progress() -> Callable[[str, int, str], Progress]:
    return Progress


@pytest.fixture(scope="session")
def sums() -> list[dict[str, str]]:
    """Twelve running sums."""
    return RunningSumSource(train=12, eval=1).make(0).train


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Qwen2 with random weights, a tokenizer and a chat template."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    directory = save_tokenizer(tmp_path_factory.mktemp("tiny-model"))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(directory)
    return directory
