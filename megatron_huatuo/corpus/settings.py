"""Settings of curation."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_huatuo.errors import ConfigError


@dataclass(frozen=True)
class CurationSettings:
    """What curation keeps, and how it cuts. Sizes: Han characters plus Latin words for Chinese, words for English."""

    max_characters_zh: int = 600
    """Longest Chinese passage, in characters; longer texts are split, nothing is dropped"""
    max_words_en: int = 400
    """Longest English passage, in words; longer texts are split, nothing is dropped"""
    min_characters_zh: int = 10
    """Shorter Chinese passages are dropped, in characters"""
    min_words_en: int = 6
    """Shorter English passages are dropped, in words"""

    def __post_init__(self) -> None:
        for low, high in (("min_characters_zh", "max_characters_zh"), ("min_words_en", "max_words_en")):
            shortest, longest = getattr(self, low), getattr(self, high)
            if not 0 <= shortest < longest:
                raise ConfigError(
                    f"wrong sizes: got {low}={shortest} and {high}={longest}, need 0 <= {low} < {high}. Change one."
                )

    def max_size(self, language: str) -> int:
        """Longest passage in the unit of the language."""
        return self.max_characters_zh if language == "zh" else self.max_words_en

    def min_size(self, language: str) -> int:
        """Shortest passage in the unit of the language."""
        return self.min_characters_zh if language == "zh" else self.min_words_en
