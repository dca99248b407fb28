"""Settings of unification that do not depend on the backend."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_huatuo.errors import ConfigError


@dataclass(frozen=True)
class UnificationSettings:
    """Limits of the quality gates."""

    max_question_characters_zh: int = 180
    """Longer Chinese questions are refused, in characters"""
    max_question_characters_en: int = 360
    """Longer English questions are refused, in characters"""
    min_answer_characters: int = 8
    """Shorter answers are refused, in characters"""
    max_answer_characters: int = 8000
    """Longer answers are refused, in characters"""

    def __post_init__(self) -> None:
        for name in ("max_question_characters_zh", "max_question_characters_en"):
            if getattr(self, name) < 1:
                raise ConfigError(f"wrong {name}: got {getattr(self, name)}, need at least 1.")
        if not 0 <= self.min_answer_characters < self.max_answer_characters:
            raise ConfigError(
                f"wrong answer lengths: got min_answer_characters={self.min_answer_characters} and "
                f"max_answer_characters={self.max_answer_characters}, need 0 <= min < max. Change one."
            )
