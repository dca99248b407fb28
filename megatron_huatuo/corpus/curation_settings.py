"""Settings of curation."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_huatuo.config import above_zero, at_least, one_of, within
from megatron_huatuo.errors import ConfigError


@dataclass(frozen=True)
class CurationSettings:
    """What curation keeps, and how it cuts. Sizes: Han characters plus Latin words for Chinese, words for English."""

    source: str | None = None
    """Name of the source of all documents; by default each record names its own"""
    lexicon: str | None = None
    """Medical terms, one per line, or "starter" for the bundled ones: drops what is not medical"""
    exam: tuple[str, ...] = ()
    """Files of exam questions, for the contamination check"""
    max_bad_lines: int = 0
    """Bad lines to skip before stopping"""
    max_characters_zh: int = 600
    """Longest Chinese passage, in characters; longer texts are split, nothing is dropped"""
    max_words_en: int = 400
    """Longest English passage, in words; longer texts are split, nothing is dropped"""
    min_characters_zh: int = 10
    """Shorter Chinese passages are dropped, in characters"""
    min_words_en: int = 6
    """Shorter English passages are dropped, in words"""
    min_density_zh: float = 0.04
    """With a lexicon: least share of a Chinese text's characters inside medical terms, 0 to 1"""
    min_density_en: float = 0.03
    """With a lexicon: least share of an English text's words inside medical terms, 0 to 1"""
    min_letter_share: float = 0.5
    """Passages with a smaller share of letters among their visible characters are dropped, 0 to 1"""
    score_model: str | None = None
    """Linear model of the passages' quality: JSON {language: {"intercept": number, feature: number…}}; by default the bundled one"""
    min_score: float = 0.0
    """Passages with a lower quality score are dropped, 0 to 1; see --preview-scores"""
    near_duplicate_similarity: float = 0.8
    """Later passages at least so similar to an earlier one are dropped, 0 to 1; above 1 switches it off"""
    mask_personal_data: bool = True
    """Replace phone numbers, e-mail addresses and identity numbers"""
    contamination_action: str = "drop"
    """What happens to passages that share text with an exam: drop or report"""

    def __post_init__(self) -> None:
        at_least("max_bad_lines", self.max_bad_lines, 0)
        for low, high in (("min_characters_zh", "max_characters_zh"), ("min_words_en", "max_words_en")):
            shortest, longest = getattr(self, low), getattr(self, high)
            if not 0 <= shortest < longest:
                raise ConfigError(
                    f"wrong sizes: got {low}={shortest} and {high}={longest}, need 0 <= {low} < {high}. Change one."
                )
        for name in ("min_density_zh", "min_density_en", "min_letter_share", "min_score"):
            within(name, getattr(self, name), 0, 1)
        above_zero("near_duplicate_similarity", self.near_duplicate_similarity)
        one_of("contamination_action", self.contamination_action, ("drop", "report"))

    def max_size(self, language: str) -> int:
        """Longest passage in the unit of the language."""
        return self.max_characters_zh if language == "zh" else self.max_words_en

    def min_size(self, language: str) -> int:
        """Shortest passage in the unit of the language."""
        return self.min_characters_zh if language == "zh" else self.min_words_en

    def min_density(self, language: str) -> float:
        """Least density of medical terms."""
        return self.min_density_zh if language == "zh" else self.min_density_en
