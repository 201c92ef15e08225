"""What is found out about chat templates, against Jinja itself."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_fixture import CHATML

from data_prep.chat_shape import Shape, find_shape
from data_prep.chat_template import ChatTemplate

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
}  # fmt: skip


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


TEXTS = st.text(alphabet=st.sampled_from(" \n\t\u3000\x0bab<>&'\"{}%|[E]é\u0301中"), max_size=12)


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
        user, assistant = {"role": "user", "content": prompt}, {"role": "assistant", "content": response}
        assert found == (one.render([user], add_generation_prompt=True), one.render([user, assistant]))


@pytest.mark.parametrize(
    "text",
    [
        CHATML.replace("message['content'] +", "message['content'] | replace('five', '5') +"),
        CHATML.replace("message['content'] +", "message['content'] | upper +"),
        CHATML.replace("message['content'] +", "(message['content'] | string)[:40] +"),
        CHATML.replace("message['content'] +", "message['content'].split('</think>')[-1] +"),
        CHATML.replace("message['content'] +", "(' ' + message['content']) | trim +"),
        CHATML.replace("message['content'] +", "'%s' % message['content'] +"),
        CHATML.replace("message['content'] +", "message['content'] * 1 +"),
        CHATML.replace("message['content'] +", "message['content'] + message['content'] +"),
        CHATML.replace("{% if message['role'] == 'assistant' %}", "{% if 'x' in message.content %}x{% endif %}"
                       "{% if message['role'] == 'assistant' %}"),
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
        "{% macro said(m) %}{{ m.content }}{% endmacro %}" + CHATML.replace("message['content'] +", "said(message) +"),
        CHATML.replace("{{ '\\n' }}{% endfor", "{{ ['a', 'b'] | random }}{% endfor"),
        CHATML.replace("message['content'] +", "(message.content | e) +"),
        CHATML.replace("'<|im_start|>assistant\\n' }}{% endif", "'<|im_start|>assistant' }}{% endif"),
    ],
)  # fmt: skip
def test_a_template_that_does_more_has_no_shape(tmp_path: Path, text: str) -> None:
    assert text != CHATML
    assert find_shape(template(tmp_path, text)) is None


def test_the_shape(tmp_path: Path) -> None:
    opening = "<|im_end|>\n<|im_start|>assistant\n"
    assert find_shape(template(tmp_path, CHATML)) == Shape("<|im_start|>user\n", opening, "<|im_end|>\n", False, False)
    shape = find_shape(template(tmp_path, LLAMA3))
    assert shape is not None
    assert (shape.trims_prompt, shape.trims_response, shape.after) == (True, True, "<|eot_id|>")
