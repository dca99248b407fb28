"""The API key of an endpoint: from an environment variable and nowhere else, into the request header and nowhere else."""

from __future__ import annotations

import os
import re

from megatron_huatuo.errors import ConfigError

_REDACTED = "[key]"
# Local servers want a key and take any: none, EMPTY, x, 1, ollama, sk-no-key-required. Such a word is not a secret, and it
# stands in ordinary text. A key of a real endpoint is long and random: letters mixed with digits, or with both cases.
_SECRETS = (
    re.compile(r"(?=.*[A-Za-z])(?=.*\d).{8,}", re.DOTALL),
    re.compile(r"(?=.*[a-z][A-Z]).{12,}", re.DOTALL),
    re.compile(r".{20,}", re.DOTALL),
)


class ApiKey:
    """A key, or None where none is given. Its text stands in no representation of this object."""

    def __init__(self, value: str | None) -> None:
        self._value = value
        self.is_secret = value is not None and any(pattern.fullmatch(value) for pattern in _SECRETS)

    def header(self) -> str:
        """The value of `Authorization`. Servers that want no key take any, and some refuse a request without one."""
        return f"Bearer {self._value or 'none'}"

    def is_in(self, text: str) -> bool:
        """Whether a text gives the key away. A key that is an ordinary word is not a secret and is found nowhere."""
        return self.is_secret and self._value is not None and self._value in text

    def redact(self, text: str) -> str:
        """The text of an error without the key. Only for messages and logs: the text of a reply is never edited."""
        return text.replace(self._value, _REDACTED) if self._value is not None and self.is_secret else text


def read_api_key(variable: str | None) -> ApiKey:
    """The key in an environment variable; no key without a name. Raises ConfigError when the variable is empty."""
    if variable is None:
        return ApiKey(None)
    value = os.environ.get(variable, "").strip()
    if not value:
        raise ConfigError(
            f"no API key: the environment variable {variable} is empty. Set it, or leave --api-key-env out."
        )
    return ApiKey(value)
