"""How a trained model is served: the chat format of its training, its template and the tokens that end its answers.

Rule: an export has the tokenizer's own template where any source of the training was indexed with it, and the recipe's
otherwise. One model has one template, and between the two the base model's is the one that servers know.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from megatron_huatuo.errors import DataError
from megatron_huatuo.index.encoded import RecordFormat
from megatron_huatuo.index.formats.chat_format import CHAT_TEMPLATE, HuatuoFormat
from megatron_huatuo.index.formats.chat_template import ChatTemplate, read_chat_template
from megatron_huatuo.index.formats.native_format import NativeFormat
from megatron_huatuo.index.tokenizer import Tokenizer
from megatron_huatuo.log import get_logger
from megatron_huatuo.storage.run_files import TOKENIZER, read_training_state
from megatron_huatuo.storage.targets import HUATUO_RULE, NATIVE_RULE


class ServedFormat(NamedTuple):
    """tokenizer: of the training. template: its own one; None for the recipe's. form: encodes as training did.
    end_ids: ids that end an answer, those of the template first; the tokenizer's end of a document is among them."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    form: RecordFormat
    end_ids: tuple[int, ...]

    @property
    def template_text(self) -> str:
        """The template in Jinja."""
        return CHAT_TEMPLATE if self.template is None else self.template.text


def is_native(chat_formats: Mapping[str, str]) -> bool:
    """Whether a training on these sources, {name: chat format}, is served with the tokenizer's own template."""
    return NATIVE_RULE.chat_format in chat_formats.values()


def served_format(checkpoint: Path, tokenizer: Tokenizer) -> ServedFormat:
    """The format of a checkpoint; the template is the one that the checkpoint carries, which training saw.

    tokenizer: of the checkpoint, or of the base model where the checkpoint carries none.
    Raises: DataError when the template is needed and is nowhere.
    """
    chat_formats: dict[str, str] = read_training_state(checkpoint).get("chat_formats") or {}
    if not is_native(chat_formats):
        return ServedFormat(tokenizer, None, HuatuoFormat(tokenizer), (tokenizer.eos_id,))
    carried = checkpoint / TOKENIZER
    place = carried if carried.is_dir() else tokenizer.path
    template = read_chat_template(place)
    if template is None:
        raise DataError(
            f"no chat template: the model was trained with its tokenizer's own, and {place} holds none. "
            "Put its chat_template.jinja there."
        )
    others = [name for name, one in chat_formats.items() if one == HUATUO_RULE.chat_format]
    if others:
        get_logger(__name__).warning(
            "sources in the recipe's format beside native ones: %s. The export has the tokenizer's own chat template",
            ", ".join(others),
        )
    form = NativeFormat(tokenizer, template, train_on_thinking=True)
    ends = dict.fromkeys(tokenizer.control_tokens[text].number for text in form.end_tokens)
    return ServedFormat(tokenizer, template, form, (*ends, *({tokenizer.eos_id} - ends.keys())))


def describe_format(served: ServedFormat) -> dict[str, Any]:
    """For the manifest and the card of an export."""
    if served.template is None:
        return {"chat_format": HUATUO_RULE.chat_format}
    return {"chat_format": NATIVE_RULE.chat_format, "chat_template_sha256": served.template.sha256}
