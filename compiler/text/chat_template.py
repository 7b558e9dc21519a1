"""Chat templates, rendered as transformers renders them (`apply_chat_template`).

The environment is the one that templates are written for: sandboxed, blocks trimmed, `break` and
`continue`, `{% generation %}` as a block without effect, `raise_exception`, `strftime_now`, and a
`tojson` that leaves `<`, `>` and `&` alone
(https://huggingface.co/docs/transformers/main/en/chat_templating_writing).
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from compiler.contracts.errors import RunError

if TYPE_CHECKING:
    from jinja2 import Template, nodes
    from jinja2.parser import Parser

TEMPLATE_FILE = "chat_template.jinja"

# What a template's expressions can raise beside jinja2's errors: None + "text", a missing key, ...
_EXPRESSION_ERRORS = (
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
)


class Message(TypedDict):
    """One turn: `role` is `system`, `user` or `assistant` (what the template knows)."""

    role: str
    content: str


class ChatTemplate:
    """One template and the special tokens that it may name.

    Args:
        source: The jinja2 source.
        special_tokens: `bos_token`, `eos_token`, ... -> text.
        where: Where the template comes from, for errors.
    """

    def __init__(self, source: str, *, special_tokens: Mapping[str, str], where: str) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._where = where
        self._compiled: Template | None = None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as one text, with the start of the assistant's turn at its end.

        Raises:
            RunError: There are no messages, or the template refuses them.
        """
        from jinja2.exceptions import TemplateError

        if not messages:
            raise RunError("the conversation is empty", hint="give at least one message")
        try:
            template = self._compiled or _compile(self.source)
            self._compiled = template
            return template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except TemplateError as error:
            raise _refused(error.message or type(error).__name__, where=self._where) from error
        except _EXPRESSION_ERRORS as error:
            raise _refused(f"{type(error).__name__}: {error}", where=self._where) from error


def chat_template_source(
    folder: Path, tokenizer_config: Mapping[str, object]
) -> tuple[str, str] | None:
    """(source, where it lies) of a folder's chat template, or None.

    `chat_template.jinja` goes before `tokenizer_config.json`, whose `chat_template` is one template
    or a list of named ones, of which `default` counts.

    Raises:
        RunError: There are several templates and none is the default.
    """
    path = folder / TEMPLATE_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8"), str(path)
    where = str(folder / "tokenizer_config.json")
    found = tokenizer_config.get("chat_template")
    if found is None:
        return None
    if isinstance(found, str):
        return found, where
    named = _named_templates(found)
    if "default" not in named:
        raise RunError(
            f"chat_template is not a template, nor a list with one named 'default'"
            f" (names: {', '.join(sorted(named)) or 'none'})",
            where=where,
            hint=f"put the wanted template into {TEMPLATE_FILE}",
            code="chat-template",
        )
    return named["default"], where


def _named_templates(found: object) -> dict[str, str]:
    if not isinstance(found, list):
        return {}
    entries = [entry for entry in found if isinstance(entry, dict)]
    return {
        str(entry["name"]): str(entry["template"])
        for entry in entries
        if "name" in entry and "template" in entry
    }


def _compile(source: str) -> "Template":
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class GenerationBlock(Extension):
        """`{% generation %}` marks the text to train on; here it is its own content."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

        def parse(self, parser: "Parser") -> "nodes.Node":
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class PlainNamespace(Namespace):
        """A namespace without names that Python gives a meaning, as transformers has it."""

        def __init__(self, **values: object) -> None:
            super().__init__()
            for name, value in values.items():
                self[name] = value

        def __setitem__(self, name: str, value: object) -> None:
            if name.startswith("_"):
                raise SecurityError(f"the namespace's '{name}' starts with an underscore")
            super().__setitem__(name, value)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["namespace"] = PlainNamespace
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _refused(reason: str, *, where: str) -> RunError:
    return RunError(
        f"the chat template refuses the conversation: {reason}", where=where, code="chat-template"
    )
