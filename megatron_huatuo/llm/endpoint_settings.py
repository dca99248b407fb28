"""Where a model is reached, and how patiently it is asked. Holds no secret."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from megatron_huatuo.config import above_zero, at_least
from megatron_huatuo.errors import ConfigError


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
