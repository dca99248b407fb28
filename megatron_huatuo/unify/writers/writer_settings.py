"""How a model is asked for questions and answers, and how a second one judges them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megatron_huatuo.config import at_least, one_of, within
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.llm.api_key import read_api_key
from megatron_huatuo.llm.budget import Price, SharedBudget
from megatron_huatuo.llm.endpoint_settings import EndpointSettings, most_completion_tokens
from megatron_huatuo.unify.writers.writer_prompts import Prompt
from megatron_huatuo.unify.writers.writer_replay import ReplayPrompt
from megatron_huatuo.unify.writers.writer_styles import QUESTION_ANSWER, Style


@dataclass(frozen=True)
class SamplingSettings:
    """Parameters that every request carries."""

    temperature: float | None = 0.7
    """Sampling temperature; 0 makes a second try useless; null leaves it out, for models that refuse it"""
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
        if self.temperature is not None:
            within("temperature", self.temperature, 0, 2)
        one_of("token_limit_key", self.token_limit_key, ("max_tokens", "max_completion_tokens"))

    def parameters(self, max_tokens: int, temperature: float | None = None) -> dict[str, Any]:
        """Fields of a request body. temperature: instead of the setting, unless the setting leaves it out."""
        chosen = self.temperature if temperature is None or self.temperature is None else temperature
        return {"temperature": chosen, self.token_limit_key: max_tokens}


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
class ModelOptions:
    """Which models are asked, how, and for how much. Holds no secret: it travels to the machines where tasks run.

    language: of questions and answers, by default each passage's own.
    """

    endpoint: EndpointSettings
    sampling: SamplingSettings
    prompts: Mapping[str, Prompt]
    check: CheckSettings = field(default_factory=CheckSettings)
    styles: Mapping[str, float] = field(default_factory=lambda: {QUESTION_ANSWER: 1.0})
    """Weight of each style"""
    style_prompts: Mapping[str, Mapping[str, Style]] = field(default_factory=dict)
    """By style and language"""
    replay: Mapping[str, ReplayPrompt] = field(default_factory=dict)
    """By language, where the model writes of itself"""
    seed: int = 0
    """Of the draws of styles and of replay"""
    language: str | None = None
    api_key_env: str | None = None
    prices: Mapping[str, Price] | None = None
    budget_usd: float | None = None

    def __post_init__(self) -> None:
        """Raises: ConfigError for anything that would fail later, an API key that is not set included."""
        for model in (self.endpoint.model, self.check.check_model):
            if self.prices is not None and model is not None and model not in self.prices:
                raise ConfigError(f"no price for model {model!r}: got prices of {sorted(self.prices)}. Add it.")
        if self.budget_usd is not None and self.prices is None:
            raise ConfigError("a budget needs prices: give the cost of the model's tokens with --prices FILE.")
        for variable in (self.api_key_env, self.check.check_api_key_env):
            read_api_key(variable)
        for endpoint in (self.endpoint, self.check_endpoint()):
            if self.budget_usd is not None and endpoint is not None:
                most_completion_tokens(endpoint.payload("", self.sampling.parameters(1)))

    @property
    def temperature(self) -> float | None:
        """What requests carry, the request options included; None where they leave it out."""
        return self.endpoint.request_options.get("temperature", self.sampling.temperature)

    def check_endpoint(self) -> EndpointSettings | None:
        """Where the second model is reached."""
        if self.check.check_model is None:
            return None
        if self.check.check_base_url is None:
            return replace(self.endpoint, model=self.check.check_model)
        # Another server may not know the options of the first.
        return replace(
            self.endpoint, model=self.check.check_model, base_url=self.check.check_base_url, request_options={}
        )

    def shared_budget(self, requests: Path) -> SharedBudget | None:
        """The budget that all tasks share, in the folder of the requests."""
        return None if self.budget_usd is None else SharedBudget(requests / "granted_usd", self.budget_usd)

    def describe(self) -> dict[str, Any]:
        """What decides the output besides the documents: models, parameters, prompt hashes."""
        described: dict[str, Any] = {
            "backend": "openai",
            "model": self.endpoint.model,
            "language": self.language,
            "temperature": self.temperature,
            "max_question_tokens": self.sampling.max_question_tokens,
            "max_answer_tokens": self.sampling.max_answer_tokens,
            "tries": self.sampling.tries,
            "request_options": dict(self.endpoint.request_options),
            "seed": self.seed,
            "styles": {
                name: {
                    "weight": weight,
                    "prompts": {
                        language: {"version": style.version, "sha256": style.sha256}
                        for language, style in sorted(self.style_prompts.get(name, {}).items())
                    },
                }
                for name, weight in sorted(self.styles.items())
            },
            "prompts": {name: {"version": p.version, "sha256": p.sha256} for name, p in sorted(self.prompts.items())},
        }
        if self.replay:
            described["replay"] = {
                name: {"version": p.version, "sha256": p.sha256} for name, p in sorted(self.replay.items())
            }
        if self.check.check_model is not None:
            described["check"] = {
                "model": self.check.check_model,
                "max_tokens": self.check.max_check_tokens,
                "prompts": {
                    name: {"version": p.version, "sha256": p.check_sha256} for name, p in sorted(self.prompts.items())
                },
            }
        return described
