import json
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from bpe_fixture import save_bpe
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_fixture import save_tokenizer
from tokenizers import Tokenizer

from data_prep.tokenization import encoder as encoder_module
from data_prep.tokenization.encoder import FAST_ENGINES, TextEncoder
from reasonforge.errors import RequestError

KINDS = ("qwen", "llama")
MARKS = [chr(c) for c in range(0x300, 0x11FFF) if unicodedata.combining(chr(c))]
COMPOSED = [chr(c) for c in range(0xC0, 0x2FA1E) if unicodedata.decomposition(chr(c))]
ODD = ["\u1df2\U0001193e", "\u0315\u0eba", "\u2dec\u0d3c", "\U00011939\u0327", "\U0001193d\U0001193e",
       "\U000116b2\u2dec", "\U00033203's", "\U000323b0a", "ſ", "İ", "'ſ", "\ufeff", "\x00", "\x1c", "\x85",
       "\u180e"]  # fmt: skip
PLAIN = ["the answer", "42", " ", "  ", "\n", "\r\n", "\t", "don't", "'S", "é", "e\u0301", "中文", "한",
         "\u1112\u1161\u11ab", "😀", "<|im_end|>", "<|begin_of_text|>", "<think>", "<think>\n", "</think",
         "12345", "\u00a0", "\u3000", "…"]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save_bpe(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(scope="module")
def encoders(models: dict[str, Path]) -> dict[tuple[str, str], TextEncoder]:
    """By kind and first engine; with `tokenizers`, none of the fast ones may be used."""
    choices: dict[str, tuple[str, ...]] = {"gigatoken": FAST_ENGINES, "fastokens": ("fastokens",), "tokenizers": ()}
    return {(kind, name): TextEncoder(models[kind], engines=use) for kind in KINDS for name, use in choices.items()}


def expected(model: Path, texts: list[str], special_tokens: bool = False) -> list[list[int]]:
    core = Tokenizer.from_file(str(model / "tokenizer.json"))
    return [core.encode(text, add_special_tokens=special_tokens).ids for text in texts]


def found(encoder: TextEncoder, texts: list[str], special_tokens: bool = False) -> list[list[int]]:
    return [ids.tolist() for ids in encoder.encode(texts, special_tokens=special_tokens)]


def adversarial(seed: int, count: int) -> list[str]:
    random = Random(seed)
    pools = [MARKS, COMPOSED, ODD, PLAIN, [chr(c) for c in range(32, 127)]]
    texts = []
    for _ in range(count):
        pieces = random.choices(random.sample(pools, 3), k=random.randrange(1, 20))
        texts.append("".join(random.choice(pool) for pool in pieces))
    return texts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", [*FAST_ENGINES, "tokenizers"])
def test_ids_are_those_of_tokenizers(
    models: dict[str, Path], encoders: dict[tuple[str, str], TextEncoder], kind: str, engine: str
) -> None:
    pytest.importorskip(engine)
    encoder = encoders[kind, engine]
    assert encoder.engine == engine
    texts = adversarial(0, 4000)
    for special_tokens in (False, True):
        assert found(encoder, texts, special_tokens) == expected(models[kind], texts, special_tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_are_taken(encoders: dict[tuple[str, str], TextEncoder], kind: str) -> None:
    """Else the test above would show nothing of the routing."""
    texts = adversarial(0, 4000)
    settled = [text for text in texts if encoders[kind, "gigatoken"].is_settled(text)]
    assert 400 < len(settled) < 3600
    assert any(not text.isascii() for text in settled)


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(PLAIN + ODD), max_size=6))
def test_any_text(models: dict[str, Path], encoders: dict[tuple[str, str], TextEncoder], texts: list[str]) -> None:
    texts = [*texts, "".join(texts)]
    for kind in KINDS:
        assert found(encoders[kind, "gigatoken"], texts, True) == expected(models[kind], texts, True)


def test_every_settled_character_alone_and_between_others(
    models: dict[str, Path], encoders: dict[tuple[str, str], TextEncoder]
) -> None:
    for kind in KINDS:
        encoder = encoders[kind, "gigatoken"]
        points = [chr(c) for c in range(0x80, 0x30000) if not 0xD800 <= c < 0xE000]
        texts = ["".join(f"a{c} {c}1'{c}\n" for c in points[start : start + 50]) for start in range(0, len(points), 50)]
        settled = [c for c in points if encoder.is_settled(c)]
        assert 80_000 < len(settled) < 100_000
        groups = ["".join(f"a{c} {c}1'{c}\n" for c in settled[s : s + 200]) for s in range(0, len(settled), 200)]
        assert found(encoder, groups) == expected(models[kind], groups)
        assert found(encoder, texts[:200]) == expected(models[kind], texts[:200])


def test_common_texts_take_the_fast_way(encoders: dict[tuple[str, str], TextEncoder]) -> None:
    encoder = encoders["qwen", "gigatoken"]
    for text in (
        "naïve – “quoted” → 5 €",
        "中文字符",
        "日本語テスト",
        "한국어",
        "русский",
        "العربية",
        "√2 ∈ ℝ ≠ 𝑥",
        "😀🚀🤖",
    ):
        assert encoder.is_settled(text), text
    for text in ("e\u0301", "\u0344", "\ud800", "\U0001193e", "\U00033203"):
        assert not encoder.is_settled(text), text


def test_a_lone_surrogate_is_an_error(encoders: dict[tuple[str, str], TextEncoder]) -> None:
    for encoder in encoders.values():
        with pytest.raises(UnicodeEncodeError):
            encoder.encode(["a", "b\ud800c"])


def changed(model: Path, directory: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    directory.mkdir()
    description = json.loads((model / "tokenizer.json").read_text())
    change(description)
    (directory / "tokenizer.json").write_text(json.dumps(description))
    return directory


def strip_space(description: dict[str, Any]) -> None:
    description["added_tokens"][0]["rstrip"] = True


UNKNOWN: dict[str, Callable[[dict[str, Any]], object]] = {
    "rstrip": strip_space,
    "nfkc": lambda one: one.update(normalizer={"type": "NFKC"}),
    "lowercase": lambda one: one.update(normalizer={"type": "Lowercase"}),
    "prefix": lambda one: one.update(
        pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Metaspace", "replacement": "▁",
                       "prepend_scheme": "always", "split": False}]}),
    "replace": lambda one: one.update(
        normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "b"}),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_tokenizer_that_is_not_known_falls_back_whole(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    model = changed(models["qwen"], tmp_path / name, UNKNOWN[name])
    encoder = TextEncoder(model)
    assert encoder.engine == "tokenizers"
    texts = [*adversarial(1, 200), "<|endoftext|>  a"]
    assert found(encoder, texts) == expected(model, texts)


def test_a_split_of_its_own_is_not_trusted_to_a_fast_encoder(tmp_path: Path) -> None:
    """fastokens takes the tokenizer of the other tests, but some of the spaces are none to it."""
    model = save_tokenizer(tmp_path)
    encoder = TextEncoder(model)
    assert encoder.engine == "tokenizers"
    texts = adversarial(2, 1000)
    assert found(encoder, texts) == expected(model, texts)


def test_truncation_and_padding_of_the_file_are_left_out(models: dict[str, Path], tmp_path: Path) -> None:
    def cut(description: dict[str, Any]) -> None:
        description["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}

    model = changed(models["qwen"], tmp_path / "cut", cut)
    for use in (FAST_ENGINES, ()):
        assert found(TextEncoder(model, engines=use), ["one two three"]) == expected(models["qwen"], ["one two three"])


class Wrong:
    """A fast encoder with a fault that shows on one word only."""

    name = "gigatoken"

    def __init__(self, core: Any) -> None:
        self.core = core

    def encode(self, texts: list[str]) -> list[Any]:
        return [self.core.encode(text.replace("zebra", "horse")) for text in texts]


def test_a_fast_encoder_that_is_wrong_on_the_sample_is_not_used(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gigatoken")
    real = encoder_module._Gigatoken.start
    monkeypatch.setattr(encoder_module._Gigatoken, "start", lambda package, text: Wrong(real(package, text)._core))  # type: ignore[union-attr]
    texts = ["a zebra", "a horse"]
    assert TextEncoder(models["qwen"]).engine == "gigatoken"  # the fault is not seen
    assert found(TextEncoder(models["qwen"]), texts) != expected(models["qwen"], texts)
    encoder = TextEncoder(models["qwen"], sample=["so", "the zebra runs"])
    assert encoder.engine != "gigatoken"
    assert found(encoder, texts) == expected(models["qwen"], texts)


def test_without_the_optional_packages_the_ids_are_the_same(models: dict[str, Path]) -> None:
    script = (
        "import sys, json\n"
        "for name in ('gigatoken', 'fastokens', 'torch', 'transformers'): sys.modules[name] = None\n"
        "from pathlib import Path\nfrom data_prep.tokenization.encoder import TextEncoder\n"
        "encoder = TextEncoder(Path(sys.argv[1]))\nassert encoder.engine == 'tokenizers'\n"
        "print(json.dumps([ids.tolist() for ids in encoder.encode(json.loads(sys.argv[2]))]))"
    )
    texts = [text for text in adversarial(3, 100) if "\x00" not in text]
    command = [sys.executable, "-c", script, str(models["llama"]), json.dumps(texts)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == expected(models["llama"], texts)


def test_neither_torch_nor_transformers_is_imported(models: dict[str, Path]) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom data_prep.tokenization.encoder import TextEncoder\n"
        "TextEncoder(Path(sys.argv[1])).encode(['a', 'e\\u0301'])\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(models["qwen"])]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    "config",
    [{}, {"bos_token": "<|begin_of_text|>", "add_bos_token": True}, {"add_bos_token": False},
     {"bos_token": "<|begin_of_text|>", "add_bos_token": True, "add_eos_token": True}],
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_put_around_a_text_is_what_transformers_puts(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    if kind == "qwen":
        config = json.loads(json.dumps(config).replace("<|begin_of_text|>", "<|im_start|>"))
    model = save_bpe(tmp_path, kind, **config)
    theirs = AutoTokenizer.from_pretrained(str(model), local_files_only=True)
    encoder = TextEncoder(model)
    for text in ("", "Hello there", "a<|im_end|>"):
        assert found(encoder, [text], special_tokens=True) == [theirs(text).input_ids]
    assert encoder.vocabulary == len(theirs)
    assert encoder.named_token("eos_token") == theirs.eos_token_id


def test_errors_are_one_line(models: dict[str, Path], tmp_path: Path) -> None:
    def fails(message: str, **files: str) -> None:
        for name in ("tokenizer", "tokenizer_config"):
            (tmp_path / f"{name}.json").unlink(missing_ok=True)
        for name, text in files.items():
            (tmp_path / f"{name}.json").write_text(text)
        with pytest.raises(RequestError, match=message) as error:
            TextEncoder(tmp_path).named_token("eos_token")
        assert "\n" not in str(error.value)

    good = (models["qwen"] / "tokenizer.json").read_text()
    fails(r"tokenizer.json: missing")
    fails(r"tokenizer.json:1: not JSON", tokenizer='{"version": ')
    fails(r"cannot be loaded: it has no model", tokenizer="{}")
    fails(
        r"cannot be loaded: ",
        tokenizer=good.replace('"type":"BPE"', '"type":"BPA"').replace('"type": "BPE"', '"type": "BPA"'),
    )
    fails(r"eos_token: not set", tokenizer=good)
    fails(r"eos_token: '</s>' is not a token", tokenizer=good, tokenizer_config='{"eos_token": "</s>"}')
    listed = json.dumps({"added_tokens_decoder": {"7": {"content": "<extra>"}}})
    fails(r"added_tokens_decoder.7: '<extra>' is not an added token", tokenizer=good, tokenizer_config=listed)
