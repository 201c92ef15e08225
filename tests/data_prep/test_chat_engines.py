"""Chat traces to ids and mask: by fast encoders without offsets, and by `tokenizers` with them."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest
from bpe_fixture import save_bpe
from tokenizer_fixture import CHATML

from data_prep.tokenization import chat as chat_tokenizer
from data_prep.tokenization.chat import ChatTokenizer, Tokenized
from data_prep.tokenization.encoder import TextEncoder
from data_prep.tokenization.template import ChatTemplate

PIECES = ["\n", "\n\n", " ", "the answer", "don't", "\u0301", "é", "e\u0301", "42", "😀", "\\boxed{4}", "\t", "中",
          "\u3000", "\u00a0", "<think>", "</think>", "\u1df2\U0001193e", "\x1c", "\u180e"]  # fmt: skip
TEMPLATES = {
    "chatml": CHATML,
    "spaces at the end": CHATML.replace("{{ '\\n' }}", "{{ '\\n \\u3000 \\n' }}"),
    "no end": "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", ["qwen", "llama"])
def test_the_way_does_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str) -> None:
    model = save_bpe(tmp_path, kind)
    (model / "chat_template.jinja").write_text(TEMPLATES[name])
    random = Random(3)

    def text() -> str:
        return "".join(random.choices(PIECES, k=random.randrange(10)))

    rows = [{"prompt": text().replace("<think>", "").replace("</think>", ""), "response": text()} for _ in range(600)]
    fast = ChatTokenizer(model, 150)
    found = fast.encode(rows)
    monkeypatch.setattr(chat_tokenizer, "_load", lambda path: TextEncoder(path, engines=()))
    monkeypatch.setattr(ChatTokenizer, "_cut_by_prefix", lambda *_: None)
    assert found == ChatTokenizer(model, 150).encode(rows)
    counts = Counter(one if isinstance(one, str) else "kept" for one in found)
    assert counts["kept"] > 100
    ends = {one.ends_with_eos for one in found if isinstance(one, Tokenized)}
    assert (True in ends) == (name != "no end" and kind == "qwen")


HEADERS = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '<|sep|>\\n\\n' + m.content | trim + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|sep|>\\n\\n' }}{% endif %}"
)
THINKING = CHATML.replace(
    "{% generation %}",
    "{% generation %}{% set said = message.content %}{% set thought = '' %}{% if '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1] %}{% set said = said.split('</think>')[-1] %}"
    "{% endif %}{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + said.lstrip('\\n') }}",
).replace("{{ message['content'] + '<|im_end|>' }}{% endgen", "{{ '<|im_end|>' }}{% endgen")
"""As Qwen 3's."""
LAYOUTS = {
    "chatml": CHATML,
    "headers, trimmed": HEADERS,
    "thinking is opened": HEADERS.replace("assistant<|sep|>\\n\\n", "assistant<|sep|><think>\\n").replace(
        "m.role + '<|sep|>\\n\\n'", "m.role + '<|sep|>' + ('\\n\\n' if m.role == 'user' else '<think>\\n')"
    ),
    "nothing after the token": HEADERS.replace("<|sep|>\\n\\n", "<|sep|>"),
    "no end of sequence": CHATML.replace("<|im_end|>", "<|sep|>"),
    "thinking is set apart": THINKING,
    "line break in the answer": CHATML.replace("assistant\\n' }}{% endif", "assistant' }}{% endif"),
    "text at the end": CHATML.replace("{{ '\\n' }}{% endfor", "{{ ' bye\\n' }}{% endfor"),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("whole", [False, True], ids=["by row", "the whole batch"])
def test_a_layout_does_not_show(tmp_path: Path, name: str, whole: bool) -> None:
    """Batches cut by their control tokens, against each row rendered by Jinja, searched and encoded twice."""
    model = save_bpe(
        tmp_path, more_tokens=["<|sep|>", "end|>", "<x>"], thinking=["<think>", "</think>"], bos_token="<x>"
    )
    (model / "chat_template.jinja").write_text(LAYOUTS[name])
    random = Random(4)
    pieces = ["\n", " ", "the answer", "don't", "é", "42", "中", "<", "think>", "|>", "<|", "im_", "start", "<|im_"]
    rare = ["\u0301", "<think>", "</think>", "<|im_end|>", "<|im_start|>", "<|sep|>", "end|>", "<x>", "\u1df2",
            "\ufb1d", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n"]  # fmt: skip

    def text() -> str:
        chosen = random.choices(pieces, k=random.randrange(9))
        return "".join([*chosen, *random.choices(rare, k=random.random() < 0.4)])

    rows = [{"prompt": text(), "response": text() + random.choice(["", "", text()])} for _ in range(1500)]
    fast = ChatTokenizer(model, 55)
    assert fast._layout is not None
    careful = ChatTokenizer(model, 55)
    careful._layout = careful._shape = None
    expected = careful.encode(rows)
    slow: list[str] = []
    encode_slowly = fast._encode_slowly
    fast._encode_slowly = lambda prompts, responses: (slow.extend(prompts), encode_slowly(prompts, responses))[1]  # type: ignore[method-assign]
    if whole:
        kept = [(row, one) for row, one in zip(rows, expected, strict=True) if not isinstance(one, str)]
        rows, expected = [row for row, _ in kept], [one for _, one in kept]
    assert [found for one in rows for found in fast.encode([one])] == expected
    assert fast.encode(rows) == expected
    assert len(slow) < 2 * len(rows) - 100
    counts = Counter(one if isinstance(one, str) else "kept" for one in expected)
    assert counts["kept"] > 150
    if not whole:
        assert counts["special_token_in_text"] > 100
        assert counts["over_max_tokens"] > 10


@pytest.mark.parametrize("name", ["ours", "qwen3_training"])
def test_thinking_is_tokenized_as_transformers_does(tmp_path: Path, name: str) -> None:
    """Ids and mask against `apply_chat_template`, for tags anywhere; what loses some of its text is dropped."""
    from transformers import AutoTokenizer

    model = save_bpe(tmp_path, thinking=["<think>", "</think>"])
    text = THINKING
    if name != "ours":
        trl = pytest.importorskip("trl")
        text = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    (model / "chat_template.jinja").write_text(text)
    random = Random(6)
    pieces = ["<think>", "</think>", "\n", "\n\n", " ", "the answer", "is 42", "<", "</", "é", "\u3000"]
    rows = [
        {
            "prompt": "What is it?" + "\n" * (n % 3),
            "response": "".join(random.choices(pieces, k=random.randrange(1, 8))),
        }
        for n in range(400)
    ]
    rows += [{"prompt": "Which?", "response": f"<think>\n{n} is it.\n</think>\n\nIt is {n}."} for n in range(50)]
    rows = [row for row in rows if row["response"].strip()]
    ours = ChatTokenizer(model, 1000)
    found = ours.encode(rows)
    theirs = AutoTokenizer.from_pretrained(str(model), local_files_only=True)
    kept = 0
    for row, one in zip(rows, found, strict=True):
        chat = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
        made = theirs.apply_chat_template(chat, return_assistant_tokens_mask=True, return_dict=True)
        said = theirs.apply_chat_template(chat, tokenize=False).partition("assistant\n")[2]
        if isinstance(one, str):
            assert one == "response_changed_by_template"
            assert "".join(row["response"].split()) not in "".join(said.split())
            continue
        length = len(one.input_ids)
        assert made["input_ids"][:length] == one.input_ids
        mask = [0] * one.prompt_tokens + [1] * (length - one.prompt_tokens)
        assert made["assistant_masks"][:length] == mask
        kept += 1
    assert kept > 200
    assert {one if isinstance(one, str) else "" for one in found} == {"", "response_changed_by_template"}
    assert ours._layout is not None


def test_thinking_that_the_template_opens(tmp_path: Path) -> None:
    """As Qwen 3.5's: there an answer without thinking goes on with other tokens than those of the prompt."""
    model = save_bpe(tmp_path, thinking=["<think>", "</think>"])
    opening = THINKING.replace("assistant\\n' }}{% endif", "assistant\\n<think>\\n' }}{% endif")
    assert opening != THINKING
    (model / "chat_template.jinja").write_text(opening)
    fast, careful = ChatTokenizer(model, 1000), ChatTokenizer(model, 1000)
    careful._layout = careful._shape = None
    natural = [{"prompt": "Which?", "response": f"<think>\n{n}.\n</think>\n\nIt is {n}."} for n in range(50)]
    odd = [{"prompt": "Which?", "response": text} for text in ("It.", "a</think>b", "<think>a", "a<think>b</think>c")]
    expected = careful.encode([*natural, *odd])
    slow: list[str] = []
    encode_slowly = fast._encode_slowly
    fast._encode_slowly = lambda prompts, responses: (slow.extend(responses), encode_slowly(prompts, responses))[1]  # type: ignore[method-assign]
    assert fast.encode([*natural, *odd]) == expected
    assert fast._layout is not None
    assert not {row["response"] for row in natural} & {*slow}
    assert not any(isinstance(one, str) for one in expected[:50])


def test_without_control_tokens_there_is_no_layout(tmp_path: Path) -> None:
    for number, template in enumerate(
        (TEMPLATES["no end"], CHATML.replace("<|im_end|>", "").replace("<|im_start|>", ""))
    ):
        model = save_bpe(tmp_path / str(number))
        (model / "chat_template.jinja").write_text(template)
        assert ChatTokenizer(model, 40)._layout is None
    # What a response may have and what it may not share characters: only a search of the text tells them apart.
    model = save_bpe(tmp_path / "meet", more_tokens=["k>"])
    (model / "chat_template.jinja").write_text(CHATML)
    assert ChatTokenizer(model, 40)._layout is None


def test_a_template_is_rendered_as_transformers_does(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    template = (
        "{{- bos_token }}\n"
        "{%- set ns = namespace(count=0) %}\n"
        "{% for m in messages %}\n"
        "    {%- if m.role == 'user' %}{% set ns.count = ns.count + 1 %}{% endif %}\n"
        "    {%- if loop.index > 5 %}{% break %}{% endif %}\n"
        "{{ m | tojson }} {{ m.content | trim }}{{ ns.count }}{{ dict(a=1).a }}\n"
        "    {% generation %}{{ '<>&' | tojson }}{% set inner = 1 %}{% endgeneration %}{{ inner is defined }}\n"
        "{% endfor %}{% if tools or documents %}no{% endif %}{% if add_generation_prompt %}{{ eos_token }}{% endif %}"
    )
    model = save_bpe(tmp_path, bos_token="<|im_start|>")
    (model / "chat_template.jinja").write_text(template)
    theirs = AutoTokenizer.from_pretrained(str(model), local_files_only=True)
    ours = ChatTemplate(model, TextEncoder(model).config)
    chat = [{"role": "user", "content": " <é> "}, {"role": "assistant", "content": "b\n"}] * 4
    for prompt in (False, True):
        expected = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
        assert ours.render(chat, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__ }}", "{{ messages.append(1) }}", "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
     "{{ namespace(__class__=1) }}", "{{ dict.__class__ }}x"],
)  # fmt: skip
def test_a_template_cannot_leave_its_sandbox(tmp_path: Path, template: str) -> None:
    from jinja2 import TemplateError

    (tmp_path / "chat_template.jinja").write_text(template)
    try:
        rendered = ChatTemplate(tmp_path, {}).render([{"role": "user", "content": "a"}])
    except TemplateError:
        return
    assert "class" not in rendered
