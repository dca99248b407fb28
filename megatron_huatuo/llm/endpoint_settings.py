"""Where a model is reached, how patiently it is asked, and what its requests carry. Holds no secret."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from megatron_huatuo.config import above_zero, at_least, read_yaml
from megatron_huatuo.errors import ConfigError

_RESERVED = {
    "model": "--model names it",
    "messages": "the prompts make them",
    "stream": "replies are read whole",
    "n": "every reply is asked for by itself",
}
_SECRET_NAMES = {"api_key", "apikey", "authorization", "access_token", "password", "secret"}
_TOKEN_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens")


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
    """Where a model is reached, how hard it is pushed, and what its requests carry besides the prompt."""

    base_url: str
    model: str
    max_concurrency: int = 64
    patience: PatienceSettings = field(default_factory=PatienceSettings)
    request_options: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of every request body; a null takes a field out (see `load_request_options`)"""

    def __post_init__(self) -> None:
        at_least("max_concurrency", self.max_concurrency, 1)
        try:
            parts = urlsplit(self.base_url)
            _ = parts.port
        except ValueError as error:
            raise ConfigError(f"wrong --base-url: {error}: need http(s)://HOST:PORT/v1.") from error
        shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"wrong --base-url: got {shown!r}, need http(s)://HOST/v1.")
        if parts.username or parts.password or parts.query:
            raise ConfigError(
                f"--base-url holds a user, password or query: {shown!r}. "
                "Secrets go into an environment variable named by --api-key-env."
            )

    def payload(self, message: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a request with one user turn. The options override the parameters; null takes a field out."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": message}],
            **parameters,
            **self.request_options,
        }
        return {name: value for name, value in body.items() if value is not None}


def load_request_options(path: str | None) -> dict[str, Any]:
    """Further fields of request bodies, from a YAML or JSON file; none without a file.

    A file with the line `chat_template_kwargs: {enable_thinking: false}` switches off the thoughts of Qwen3 on vLLM and
    SGLang, one with `temperature: null` leaves the temperature out. Raises: ConfigError naming file and key.
    """
    if path is None:
        return {}
    options = read_yaml(path)
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise ConfigError(f"wrong request options: got {type(options).__name__}, need a mapping of fields ({path}).")
    for name in options:
        if name in _RESERVED:
            raise ConfigError(f"request option {name!r} is not free: {_RESERVED[name]} ({path}). Take it out.")
        if name.lower().replace("-", "_") in _SECRET_NAMES:
            raise ConfigError(
                f"request option {name!r} looks like a secret: options are written into the manifest ({path}). "
                "Keys go into an environment variable named by --api-key-env."
            )
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"wrong request options: {error}: need values that JSON has ({path}).") from error
    return options


def token_limits(payload: Mapping[str, Any]) -> list[Any]:
    """The limits of completion tokens that a request body names."""
    return [payload[name] for name in _TOKEN_LIMITS if payload.get(name) is not None]


def most_completion_tokens(payload: Mapping[str, Any]) -> int:
    """The limit of completion tokens in a request body. Raises ConfigError when there is none, so that no budget holds."""
    limits = token_limits(payload)
    if not limits or not all(isinstance(limit, int) and limit > 0 for limit in limits):
        raise ConfigError(
            f"a budget needs a limit of tokens in every request: got {limits or 'none'}, need one of "
            f"{', '.join(_TOKEN_LIMITS)}. Set it in --request-options, or leave --budget-usd out."
        )
    return int(max(limits))
