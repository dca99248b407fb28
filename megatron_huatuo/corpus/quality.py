"""Why a passage is not fit for use."""

from __future__ import annotations

import re

from megatron_huatuo.corpus.curation_settings import CurationSettings
from megatron_huatuo.text.damage import find_damage, is_repetitive
from megatron_huatuo.text.language import count_size

_SENTENCE_MARK = re.compile("[。！？!?；;.，,]")
_LONG_CHARACTERS = 120
_PAGE_FURNITURE = (
    "版权所有", "ICP备", "点击此处", "点击这里", "点击查看", "扫描二维码", "关注微信公众号", "Copyright ©", "All rights reserved",
    "JavaScript is disabled", "enable JavaScript", "accept cookies", "function(", "{display:",
)  # fmt: skip


def refuse_passage(text: str, language: str, settings: CurationSettings) -> str | None:
    """The reason why a passage is no good, or None."""
    if damage := find_damage(text):
        return damage
    if (size := count_size(text, language)) < settings.min_size(language):
        return f"too short: {size}"
    visible = len("".join(text.split()))
    letters = sum(map(str.isalpha, text))
    if letters < settings.min_letter_share * visible:
        return f"mostly symbols: {letters} letters of {visible} characters"
    if is_repetitive(text):
        return "repeats itself"
    if len(text) > _LONG_CHARACTERS and not _SENTENCE_MARK.search(text):
        return "no sentences"
    if furniture := next((mark for mark in _PAGE_FURNITURE if mark in text), None):
        return f"page furniture: {furniture}"
    return None
