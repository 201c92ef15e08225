"""A model's chat template, rendered as transformers renders it but without importing transformers.

`chat` uses it. A template is foreign code, so it runs in Jinja's sandbox and sees plain data only.
"""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from reasonforge.errors import RequestError

Messages = Sequence[dict[str, str]]

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """The chat template of a model directory.

    Args:
        model: the directory; its chat_template.jinja comes before what tokenizer_config.json holds.
        config: the content of tokenizer_config.json; a template can use the names of its tokens.

    Raises RequestError where there is none; jinja2.TemplateError, also from `render`, where it does not work.
    """

    def __init__(self, model: Path, config: dict[str, Any]) -> None:
        path = model / "chat_template.jinja"
        found: Any = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
        if isinstance(found, list):
            found = {one["name"]: one["template"] for one in found}
        chosen = found.get("default") if isinstance(found, dict) else found
        if not chosen:
            raise RequestError(
                str(path),
                "missing, and tokenizer_config.json has no chat template either",
                "put the model's chat template there",
            )
        self.source: str | dict[str, str] = found
        """The template, or all of them by name where the configuration has several."""
        self.text: str = chosen
        """The template that is rendered."""
        names = {name: config[name] for name in _TOKEN_NAMES if config.get(name) is not None}
        self._tokens = {name: one["content"] if isinstance(one, dict) else one for name, one in names.items()}

    def render(self, messages: Messages, *, add_generation_prompt: bool = False) -> str:
        """A conversation as text."""
        return _compiled(self.text)(**self.variables(messages, add_generation_prompt))

    def variables(self, messages: Messages, add_generation_prompt: bool) -> dict[str, Any]:
        """What the template sees."""
        return {
            "messages": [dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self._tokens,
        }


@lru_cache(maxsize=4)
def _compiled(template: str) -> Callable[..., str]:
    compiled = environment().from_string(template)
    compiled.globals = dict(compiled.globals)  # Jinja's chain of mappings is slow to copy, once for each text
    render: Callable[..., str] = compiled.render
    return render


@lru_cache(maxsize=1)
def environment() -> Any:
    """The jinja2.Environment that transformers gives a chat template (utils/chat_template_utils.py of 5.23)."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """`{% generation %}` marks what the assistant says; here it is only its content."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Names(Namespace):
        """A namespace that does not let a template set attributes of Python's own."""

        def __init__(*arguments: Any, **named: Any) -> None:  # `namespace(self=...)` is allowed
            self, *rest = arguments
            Namespace.__init__(self)
            for name, value in dict(*rest, **named).items():
                self[name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise TemplateError(f"a chat template may not set {name!r}")
            super().__setitem__(name, value)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = _to_json
    made.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": lambda *arguments, **named: dict(*arguments, **named),
        "namespace": Names,
    }
    return made


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
             sort_keys: bool = False) -> str:  # fmt: skip
    """Jinja's own filter would escape the characters of HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
