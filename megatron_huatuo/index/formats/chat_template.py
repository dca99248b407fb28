"""A tokenizer's own chat template: found, compiled in Jinja's sandbox as transformers does, and rendered.

Invariant: a template gives the text that transformers' `apply_chat_template` gives for the same messages, and cannot reach
anything but them. What a template may ask of the clock is fixed when it is opened, so equal input gives equal text.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.storage.manifest import read_json

TEMPLATE_FILE = "chat_template.jinja"
_SETTINGS = ("special_tokens_map.json", "tokenizer_config.json")  # the later one wins
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Message = Mapping[str, Any]


class TemplateRefusal(DataError):
    """A template that does not take these messages; the text is its own."""


class ChatTemplate:
    """One template with the names of the special tokens that it writes.

    text: as it is published; path: the file that holds it; special_tokens: {"bos_token": "<s>", …}.
    date: what `strftime_now` in a template gives; None where the template does not ask.
    Raises: ConfigError when the text is no template.
    """

    def __init__(
        self, text: str, path: Path, special_tokens: Mapping[str, str], date: datetime.date | None = None
    ) -> None:
        self.text, self.path, self.special_tokens = text, path, dict(special_tokens)
        environment = template_environment()
        try:
            names = {node.name for node in environment.parse(text).find_all(jinja2.nodes.Name)}
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"chat template is not a Jinja template: {error.message} ({path}, line {error.lineno} of the template). Fix it."
            ) from error
        self.date = (date or datetime.date.today()) if "strftime_now" in names else None
        self._compiled = self.compile_in(environment)

    @property
    def sha256(self) -> str:
        """sha256 of the text in UTF-8."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()

    def compile_in(self, environment: jinja2.Environment) -> jinja2.Template:
        """The template in an environment of `template_environment`, which knows the date."""
        if self.date is not None:
            environment.globals["strftime_now"] = self.date.strftime
        return environment.from_string(self.text)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of messages, as `apply_chat_template(tokenize=False)` gives it.

        messages: `{"role": "system" | "user" | "assistant", "content": text}`.
        Raises: TemplateRefusal with the template's own words.
        """
        try:
            return self._render(messages, None, add_generation_prompt)
        except Exception as error:  # templates compute freely, and fail with any error
            raise TemplateRefusal(self._reason(error, messages, add_generation_prompt)) from error

    def _render(self, messages: Sequence[Message], tools: list[Any] | None, add_generation_prompt: bool) -> str:
        return self._compiled.render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self.special_tokens,
        )

    def _reason(self, error: Exception, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        try:
            self._render(messages, [], add_generation_prompt)
        except Exception:
            name = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
            return f"{name}{error}".strip() or type(error).__name__
        return "it asks for tools, which training records do not have"


def template_environment(**settings: Any) -> jinja2.Environment:
    """The sandbox in which transformers renders templates: its block trimming, loop controls, `tojson`, `raise_exception`
    and the tag `generation`, which marks what the assistant says and writes nothing itself."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols], **settings
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` writes its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def read_chat_template(tokenizer: str | PathLike[str], date: datetime.date | None = None) -> ChatTemplate | None:
    """The chat template that lies with a tokenizer, or None where there is none.

    tokenizer: its directory, or a file in it. `chat_template.jinja` comes first, then `chat_template` in
    tokenizer_config.json (the one named "default" of a list). Raises: ConfigError for one that is no template.
    """
    path = Path(tokenizer)
    directory = path if path.is_dir() else path.parent
    settings = _read_settings(directory)
    file = directory / TEMPLATE_FILE
    if file.is_file():
        text: Any = file.read_text(encoding="utf-8")
    else:
        file, text = directory / _SETTINGS[-1], settings.get("chat_template")
        if isinstance(text, list):
            text = {one.get("name"): one.get("template") for one in text if isinstance(one, dict)}.get("default")
    if text is None:
        return None
    if not isinstance(text, str):
        raise ConfigError(f"wrong chat_template: got {type(text).__name__}, need text ({file}). Fix it.")
    return ChatTemplate(text, file, _special_tokens(settings), date)


def need_chat_template(tokenizer: str | PathLike[str], date: datetime.date | None = None) -> ChatTemplate:
    """The same, where there must be one. Raises: ConfigError."""
    found = read_chat_template(tokenizer, date)
    if found is None:
        raise ConfigError(
            f"tokenizer has no chat template: {tokenizer} has neither {TEMPLATE_FILE} nor 'chat_template' in "
            f"{_SETTINGS[-1]} beside it. Copy the model's file there, or use --chat-format huatuo."
        )
    return found


def _read_settings(directory: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in _SETTINGS:
        if (directory / name).is_file():
            settings |= read_json(directory / name)
    return settings


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name in _NAMED_TOKENS:
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found[name] = token
    return found
