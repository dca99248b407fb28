"""Settings of unification: the endpoint, its requests, our patience with it, and the quality gates."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from megatron_huatuo.config import above_zero, at_least, one_of, within
from megatron_huatuo.errors import ConfigError


@dataclass(frozen=True)
class SamplingSettings:
    """Parameters that every request carries."""

    temperature: float = 0.7
    """Sampling temperature; 0 makes a second try useless"""
    max_question_tokens: int = 512
    """Longest reply to the question prompt, in tokens"""
    max_answer_tokens: int = 2048
    """Longest reply to the answer prompt, in tokens"""
    tries: int = 2
    """Drafts of a question, and of an answer, before a document is refused"""
    token_limit_key: str = "max_tokens"
    """Name of the token limit in requests; newer commercial models want max_completion_tokens"""

    def __post_init__(self) -> None:
        for name in ("max_question_tokens", "max_answer_tokens", "tries"):
            at_least(name, getattr(self, name), 1)
        within("temperature", self.temperature, 0, 2)
        one_of("token_limit_key", self.token_limit_key, ("max_tokens", "max_completion_tokens"))


@dataclass(frozen=True)
class PatienceSettings:
    """How long an endpoint that fails is asked again."""

    request_timeout_s: float = 180.0
    """Longest time for one request, in seconds"""
    max_retries: int = 6
    """Further tries after a failed one that may pass: time-outs, resets, 408, 409, 425, 429, 5xx, garbage"""
    backoff_s: float = 1.0
    """First wait between tries, in seconds; doubles each time, with jitter, up to max_wait_s"""
    max_wait_s: float = 60.0
    """Longest wait that back-off chooses, in seconds"""
    max_retry_after_s: float = 600.0
    """The run stops when the endpoint asks to wait longer than this, in seconds"""
    max_failures_in_a_row: int = 20
    """The run stops after so many requests without any success between them"""

    def __post_init__(self) -> None:
        at_least("max_retries", self.max_retries, 0)
        at_least("max_failures_in_a_row", self.max_failures_in_a_row, 1)
        for name in ("request_timeout_s", "backoff_s", "max_wait_s", "max_retry_after_s"):
            above_zero(name, getattr(self, name))


@dataclass(frozen=True)
class EndpointSettings:
    """Where a model is reached, and how hard it is pushed."""

    base_url: str
    model: str
    max_concurrency: int = 64
    patience: PatienceSettings = field(default_factory=PatienceSettings)

    def __post_init__(self) -> None:
        at_least("max_concurrency", self.max_concurrency, 1)
        parts = urlsplit(self.base_url)
        shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"wrong --base-url: got {shown!r}, need http(s)://HOST/v1.")
        if parts.username or parts.password or parts.query:
            raise ConfigError(
                f"--base-url holds a user, password or query: {shown!r}. "
                "Secrets go into an environment variable named by --api-key-env."
            )


@dataclass(frozen=True)
class CheckSettings:
    """The second model, which judges finished pairs."""

    check_model: str | None = None
    """A second model judges every pair; what it does not find right is refused"""
    check_base_url: str | None = None
    """Endpoint of the second model, up to /v1; by default that of the first"""
    check_api_key_env: str | None = None
    """Variable with the API key of --check-base-url; without that flag the first key serves both"""
    max_check_tokens: int = 512
    """Longest reply of the second model, in tokens"""

    def __post_init__(self) -> None:
        at_least("max_check_tokens", self.max_check_tokens, 1)
        if self.check_model is None and (self.check_base_url or self.check_api_key_env):
            raise ConfigError("--check-base-url and --check-api-key-env have no effect without --check-model. Name it.")
        if self.check_api_key_env and not self.check_base_url:
            raise ConfigError("--check-api-key-env has no effect without --check-base-url: the first key serves both.")


@dataclass(frozen=True)
class QualitySettings:
    """Limits of the quality gates."""

    max_question_characters_zh: int = 180
    """Longer Chinese questions are refused, in characters"""
    max_question_characters_en: int = 360
    """Longer English questions are refused, in characters"""
    min_answer_characters: int = 8
    """Shorter answers are refused, in characters"""
    max_answer_characters: int = 8000
    """Longer answers are refused, in characters"""
    min_faithfulness: float = 0.3
    """Least share of the answer's content that the passage supports, 0 to 1; 0 switches the gate off"""
    min_sentence_faithfulness: float = 0.2
    """Least share of each longer sentence's content that passage or question support, 0 to 1; 0 switches the gate off"""
    min_coverage: float = 0.1
    """Least share of the passage's content that the pair keeps, 0 to 1; 0 switches the gate off"""
    check_numbers: bool = True
    """Refuse answers with numbers or doses that the passage does not state"""
    near_duplicate_similarity: float = 0.85
    """Later pairs at least so similar to an earlier one are refused, 0 to 1; above 1 switches the gate off"""

    def __post_init__(self) -> None:
        for name in ("max_question_characters_zh", "max_question_characters_en"):
            at_least(name, getattr(self, name), 1)
        if not 0 <= self.min_answer_characters < self.max_answer_characters:
            raise ConfigError(
                f"wrong answer lengths: got min_answer_characters={self.min_answer_characters} and "
                f"max_answer_characters={self.max_answer_characters}, need 0 <= min < max. Change one."
            )
        for name in ("min_faithfulness", "min_sentence_faithfulness", "min_coverage"):
            within(name, getattr(self, name), 0, 1)
        above_zero("near_duplicate_similarity", self.near_duplicate_similarity)
