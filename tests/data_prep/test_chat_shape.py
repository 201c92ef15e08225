"""What is found out about chat templates, against Jinja itself: of these tests, and as models have them."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_fixture import CHATML

from data_prep.tokenization import shape as chat_shape
from data_prep.tokenization.shape import Shape, find_shape
from data_prep.tokenization.template import ChatTemplate

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim "
    "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
WITH_TOOLS = (
    "{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = 'Be brief.' %}{% endif %}{{ '[S]' + system }}"
    "{% for m in messages %}{% if not (m.role == 'tool' or 'tool_calls' in m) and m.content is string %}"
    "{{ '[' ~ m.role ~ ']' }}{{ m.content }}{{ '[E]\\n' if m.content else '' }}"
    "{% elif m.role == 'tool' or messages[loop.index0 - 1].role == 'tool' %}{{ m.content | tojson }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
KNOWN = {
    "chatml": CHATML,
    "llama 3": LLAMA3,
    "tools": WITH_TOOLS,
    "strip": CHATML.replace("{{ message['content'] + '<|im_end|>' }}{% endif", "{{ message.content.strip() }}{% endif"),
    "either": CHATML.replace("message['content'] +", "(message.content or 'nothing') +"),
    "trimmed with more": CHATML.replace("message['content'] +", "(' ' + message['content']) | trim +"),
    "line break in the answer": CHATML.replace("assistant\\n' }}{% endif", "assistant' }}{% endif"),
    "macro of a message": "{% macro said(m) %}{{ m.content }}{% endmacro %}"
    + CHATML.replace("message['content'] +", "said(message) +"),
    "macro": "{% macro said(content, more=1) %}{% if content is string %}{{ content }}{% endif %}{% endmacro %}"
    + CHATML.replace("message['content'] +", "said(message.content, true) | trim +"),
}  # fmt: skip
SETS_THINKING_APART = (
    "{% set ns = namespace(query=-1) %}{% for m in messages[::-1] %}"
    "{% set at = (messages | length - 1) - loop.index0 %}"
    "{% if ns.query < 0 and m.role == 'user' and m.content is string and not (m.content.startswith('<result>') and "
    "m.content.endswith('</result>')) %}{% set ns.query = at %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set said = m.content if m.content is string else '' %}"
    "{% if m.role != 'assistant' %}{{ '[' + m.role + ']\n' + said + '[end]\n' }}{% else %}{% set thought = '' %}"
    "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}{% elif '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '[assistant]\n' }}{% if loop.index0 > ns.query and (loop.last or thought) %}"
    "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + said.lstrip('\n') }}{% else %}{{ said }}{% endif %}"
    "{{ '[end]\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
"""As Qwen 3's: it moves what is before `</think>` into a block of its own, with fixed line breaks around it."""
THINKING = {
    "qwen 3": SETS_THINKING_APART,
    "opened": SETS_THINKING_APART.replace("[assistant]\n{% endif %}", "[assistant]\n<think>\n{% endif %}"),
    "last and first": SETS_THINKING_APART.replace("[0].rstrip", " | first | trim).rstrip").replace(
        "thought = said.split", "thought = (said.split"
    ),
    "other marks": CHATML.replace(
        "message['content'] +", "('x' if 'aa' in message.content else '') + message.content +"
    ),
}
OF_MODELS = ("qwen2_5", "qwen3", "qwen3_5_think", "qwen3_6", "qwen3_8", "llama3_1", "glm4moe", "gptoss")
"""As `trl` has them, word for word."""


def template(directory: Path, text: str) -> ChatTemplate:
    directory.mkdir(exist_ok=True)
    (directory / "chat_template.jinja").write_text(text)
    return ChatTemplate(directory, {"bos_token": "<s>"})


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ChatTemplate, Shape]]:
    found = {}
    for name, text in KNOWN.items():
        one = template(tmp_path_factory.mktemp("template"), text)
        shape = find_shape(one)
        assert shape is not None, name
        found[name] = (one, shape)
    return found


TEXTS = st.text(alphabet=st.sampled_from(" \n\t\u3000\x0bab<>&'\"{}%|[E]é\u0301中\ufdd0"), max_size=12)
TAGGED = st.lists(
    st.sampled_from(["<think>", "</think>", "<result>", "</result>", "\n", "\n\n", " ", "\u2003", "a", "aa", "five",
                     "<", "</", "think>", ">", "</thi", "nk>", "\ufdd0", "\ufde1", "é\u0301", "<tool_response>"]),
    max_size=9,
).map("".join)  # fmt: skip


def rendered(one: ChatTemplate, prompt: str, response: str) -> tuple[str, str]:
    user, assistant = {"role": "user", "content": prompt}, {"role": "assistant", "content": response}
    return one.render([user], add_generation_prompt=True), one.render([user, assistant])


@settings(max_examples=150, deadline=None)
@given(prompt=TEXTS, response=TEXTS)
@pytest.mark.parametrize("name", KNOWN)
def test_a_shape_renders_as_jinja_does(
    known: dict[str, tuple[ChatTemplate, Shape]], name: str, prompt: str, response: str
) -> None:
    one, shape = known[name]
    found = shape.render(prompt, response)
    assert (found is None) == (not prompt.strip() or not response.strip())
    if found is not None:
        assert found == rendered(one, prompt, response)


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ChatTemplate, Shape]]:
    trl = pytest.importorskip("trl")
    texts = {name: (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text() for name in OF_MODELS}
    found = {}
    for name, text in (THINKING | texts).items():
        one = template(tmp_path_factory.mktemp("template"), text)
        shape = find_shape(one)
        assert shape is not None, name
        found[name] = (one, shape)
    return found


NATURAL = [
    "<think>\nWe add 1 < 2.\n\nSo 3.\n</think>\n\nThe answer is \\boxed{3}.",
    "<think>\nSo 3.\n</think>\n\\boxed{3}",
    "<think>So 3.</think> 3\n",
    "So 3.\n</think>\n\n3",
    "<think>\n\n</think>\n\n3",
    "No thinking here.\n",
    "<think>\nIt goes on and on",
]


@settings(max_examples=120, deadline=None)
@given(prompt=TAGGED, response=TAGGED)
@example(prompt="What?", response="<think>" * 40 + "a</think>b")
@example(prompt="What?", response="a</think>b<think>c</think>d")
@pytest.mark.parametrize("name", [*THINKING, *OF_MODELS])
def test_thinking_is_set_apart_as_jinja_does(
    thinking: dict[str, tuple[ChatTemplate, Shape]], name: str, prompt: str, response: str
) -> None:
    one, shape = thinking[name]
    found = shape.render(prompt, response)
    assert found is None or found == rendered(one, prompt, response)


@pytest.mark.parametrize("name", [*THINKING, *OF_MODELS])
def test_natural_rows_need_no_jinja(thinking: dict[str, tuple[ChatTemplate, Shape]], name: str) -> None:
    one, shape = thinking[name]
    for response in NATURAL:
        found = shape.render("What is 1+2?\nSay.", response)
        assert found is not None, response
        assert found == rendered(one, "What is 1+2?\nSay.", response)


def test_forms_are_not_remembered_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_shape, "_MOST_FORMS", 3)
    one = template(tmp_path, SETS_THINKING_APART)
    shape = find_shape(one)
    assert shape is not None
    found = [shape.render("What?", "\n" * size + "That.") for size in range(6)]
    assert [one for one in found if one is None] == [None] * 3
    assert found[1] == rendered(one, "What?", "\nThat.")


def test_what_is_left_out_is_left_to_the_template(thinking: dict[str, tuple[ChatTemplate, Shape]]) -> None:
    """The careful way drops such rows: `keeps` would not hold for them."""
    shape = thinking["qwen 3"][1]
    assert shape.render("What?", "Well, <think>a</think>b") is None
    assert shape.render("What?", "<think>a</think>b</think>c") is None
    assert shape.render("What?", "b < a <think") is None  # together with a > it would be a mark
    assert shape.render("What?", "b < a") is not None


@pytest.mark.parametrize(
    "text",
    [
        CHATML.replace("message['content'] +", "message['content'] | replace('five', '5') +"),
        CHATML.replace("message['content'] +", "message['content'] | upper +"),
        CHATML.replace("message['content'] +", "(message['content'] | string)[:40] +"),
        CHATML.replace("message['content'] +", "'%s' % message['content'] +"),
        CHATML.replace("message['content'] +", "message['content'] * 1 +"),
        CHATML.replace("message['content'] +", "message['content'] + message['content'] +"),
        CHATML.replace("{{ '\\n' }}{% endfor", "{{ 'x' if message.content in 'five' else '' }}{% endfor"),
        CHATML.replace("{{ '\\n' }}{% endfor", "{{ 'x' if bos_token in message.content else '' }}{% endfor"),
        CHATML.replace("{{ '\\n' }}{% endfor", "{{ 'x' if {'content': 'five'} in messages else '' }}{% endfor"),
        CHATML.replace("message['content'] +", "message['content'].split()[0] +"),
        CHATML.replace("message['content'] +", "message['content'].split('</think>')[:2] | join +"),
        CHATML.replace("message['content'] +", "message['content'].split('</think>') | length | string +"),
        CHATML.replace("message['content'] +", "message['content'].strip('five') +"),
        CHATML.replace("message['content'] +", "message['content'].split('a', 1)[0] +"),
        CHATML.replace("message['content'] +", "'\\ufdd0' + message['content'] +"),
        CHATML.replace("{{ '\\n' }}{% endfor", "{{ message.content.split('a') }}{% endfor"),
        "{% macro said(m) %}{% if m == 'five' %}x{% endif %}{% endmacro %}"
        + CHATML.replace("message['content'] +", "said(message.content) +"),
        "{% macro said(m) %}{{ m }}{% endmacro %}"
        + CHATML.replace("{{ '\\n' }}{% endfor", "{{ '\\n' if said(message.content) != 'five' }}{% endfor"),
        "{% macro said() %}{{ caller() }}{% endmacro %}"
        + CHATML.replace("{{ '\\n' }}{% endfor", "{% call said() %}{{ message.content }}{% endcall %}{% endfor"),
        CHATML.replace("{{ '\\n' }}{% endfor", "{{ '\\n' if message.content != 'five' else '' }}{% endfor"),
        CHATML.replace("{{ '\\n' }}{% endfor", "{% for c in message.content %}{% endfor %}{{ '\\n' }}{% endfor"),
        CHATML.replace("{{ '\\n' }}{% endfor", "{{ message.content | length }}{% endfor"),
        CHATML.replace("{{ '\\n' }}{% endfor", "{% if loop.previtem and loop.previtem.content == 'five' %}x{% endif %}"
                       "{{ '\\n' }}{% endfor"),
        CHATML.replace("{{ '\\n' }}{% endfor", "{% set l = loop %}{% if l.previtem is string %}{% endif %}{% endfor"),
        CHATML.replace("{{ '\\n' }}{% endfor", "{% set t %}{{ message.content }}{% endset %}{{ '\\n' }}{% endfor"),
        CHATML.replace("{{ '\\n' }}{% endfor", "{% if message.values() | list == [] %}{% endif %}{{ '\\n' }}{% endfor"),
        CHATML.replace("{{ '\\n' }}{% endfor", "{% if message.get('content') == 'five' %}x{% endif %}\n{% endfor"),
        CHATML.replace("{{ '\\n' }}{% endfor",
                       "{% set k = 'content' %}{% if message[k] == 'five' %}x{% endif %}{% endfor"),
        CHATML.replace("{{ '\\n' }}{% endfor", "{% if (messages | tojson) == 'five' %}x{% endif %}{% endfor"),
        CHATML.replace("{{ '\\n' }}{% endfor",
                       "{% set ns = namespace(c=message.content) %}{% if ns.c == 'five' %}x{% endif %}{% endfor"),
        "{% set ns = namespace(c='') %}" + CHATML.replace("{{ '\\n' }}{% endfor",
                       "{% if ns.c == 'five' %}x{% endif %}{% set ns.c = message.content %}{% endfor"),
        "{% set last = '' %}" + CHATML.replace("{{ '\\n' }}{% endfor",
                       "{% if last == 'five' %}x{% endif %}{% set last = message.content %}{% endfor"),
        CHATML.replace("{{ '\\n' }}{% endfor", "{{ ['a', 'b'] | random }}{% endfor"),
        CHATML.replace("message['content'] +", "(message.content | e) +"),
        CHATML.replace("'<|im_start|>assistant\\n' }}{% endif", "'<|im_start|>model\\n' }}{% endif"),
    ],
)  # fmt: skip
def test_a_template_that_does_more_has_no_shape(tmp_path: Path, text: str) -> None:
    assert text != CHATML
    assert find_shape(template(tmp_path, text)) is None


def test_the_shape(tmp_path: Path) -> None:
    found = find_shape(template(tmp_path, CHATML))
    assert found is not None
    opening = "<|im_end|>\n<|im_start|>assistant\n"
    assert (found.before, found.between, found.after) == ("<|im_start|>user\n", opening, "<|im_end|>\n")
    shape = find_shape(template(tmp_path, LLAMA3))
    assert shape is not None
    assert shape.render(" a ", "b\n") == rendered(template(tmp_path, LLAMA3), "a", "b")
    assert shape.after == "<|eot_id|>"
