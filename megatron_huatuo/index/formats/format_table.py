"""The formats of an index by name, and the settings that choose one."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from megatron_huatuo.config import one_of
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.index.encoded import RecordFormat
from megatron_huatuo.index.formats.chat_format import HuatuoFormat
from megatron_huatuo.index.formats.text_format import TextFormat
from megatron_huatuo.index.tokenizer import Tokenizer

RECORDS = ("conversations", "text")
CHAT_FORMATS = ("huatuo", "native")


@dataclass(frozen=True)
class FormatSettings:
    """What is indexed, and how. Raises: ConfigError for settings that do not go together."""

    records: str = "conversations"
    """conversations, or text: documents as they are, every token trained on."""
    chat_format: str | None = None
    """huatuo (the default): the recipe's; native: the tokenizer's own chat template."""
    train_on_thinking: bool | None = None
    """With native: whether what stands before `</think>` in an answer is trained on (the default) or is context."""
    template_date: str | None = None
    """With native: the date, YYYY-MM-DD, for templates that write today's; None: today's."""

    def __post_init__(self) -> None:
        one_of("--format", self.records, RECORDS)
        one_of("--chat-format", self.chat_format or CHAT_FORMATS[0], CHAT_FORMATS)
        if self.records == "text" and self.chat_format is not None:
            raise ConfigError(
                f"wrong --chat-format: got {self.chat_format} with --format text, which has no turns. Leave it out."
            )
        for name, value in (
            ("--train-on-thinking", self.train_on_thinking),
            ("--template-date", self.template_date),
        ):
            if value is not None and self.chat_format != "native":
                raise ConfigError(
                    f"wrong {name}: got {value} without --chat-format native, which alone uses it. Leave it out."
                )
        try:
            datetime.date.fromisoformat(self.template_date or "2000-01-01")
        except ValueError as error:
            raise ConfigError(f"wrong --template-date: got {self.template_date!r}, need YYYY-MM-DD") from error

    def dated(self) -> FormatSettings:
        """The same with the date set, so that all processes have one."""
        if self.chat_format != "native" or self.template_date is not None:
            return self
        return FormatSettings(self.records, self.chat_format, self.train_on_thinking, datetime.date.today().isoformat())


DEFAULT_FORMAT = FormatSettings()


def open_format(settings: FormatSettings, tokenizer: Tokenizer) -> RecordFormat:
    """The format of these settings with a tokenizer. Raises: ConfigError when the two do not fit."""
    if settings.records == "text":
        return TextFormat(tokenizer)
    if settings.chat_format == "native":
        # Jinja takes a tenth of a second that the workers of other formats do not need.
        from megatron_huatuo.index.formats.chat_template import need_chat_template
        from megatron_huatuo.index.formats.native_format import NativeFormat

        date = None if settings.template_date is None else datetime.date.fromisoformat(settings.template_date)
        template = need_chat_template(tokenizer.path, date)
        return NativeFormat(tokenizer, template, settings.train_on_thinking is not False)
    return HuatuoFormat(tokenizer)
