"""The API key of an endpoint: from an environment variable, and from nowhere else."""

from __future__ import annotations

import os

from megatron_huatuo.errors import ConfigError


def read_api_key(variable: str | None) -> str | None:
    """The key in an environment variable; None without a name. Raises ConfigError when the variable is empty."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"no API key: the environment variable {variable} is empty. Set it, or leave --api-key-env out."
        )
    return key
