"""Chooses who generates: a Hugging Face directory, or an endpoint. Only the chosen one's libraries are loaded."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.evaluate.generate import GenerationSettings, Generator, ModelEndpoint


def open_generator(
    model: str | os.PathLike[str] | ModelEndpoint,
    log_directory: Path,
    settings: GenerationSettings,
    *,
    trust_remote_code: bool = False,
) -> Generator:
    """Load a Hugging Face directory, or prepare for an endpoint.

    trust_remote_code: run the Python code that lies in the directory; without it such a directory is refused.
    log_directory: where the request log `requests-*.sqlite` of this model is kept.
    Raises: ConfigError when there is no such directory, or it cannot be loaded.
    """
    if isinstance(model, ModelEndpoint):
        if trust_remote_code:
            raise ConfigError("--trust-remote-code has no effect with an endpoint. Leave it out.")
        from megatron_huatuo.evaluate.endpoint import EndpointGenerator

        return EndpointGenerator(model, log_directory, settings)
    from megatron_huatuo.evaluate.huggingface import HuggingFaceGenerator

    return HuggingFaceGenerator(Path(model), log_directory, settings, trust_remote_code=trust_remote_code)
