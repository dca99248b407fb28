"""One interface to whatever answers: a Hugging Face directory, or a model behind an OpenAI-compatible endpoint.

Invariant: a reply is in the request log before anyone sees it, keyed by its prompt, the model's fingerprint and the
generation settings. A rerun on the same log generates, and pays, only what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Protocol

from megatron_huatuo.config import above_zero
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.evaluate.answering.chat_templates import AUTO_TEMPLATE, check_template_name
from megatron_huatuo.llm.endpoint_settings import PatienceSettings


class GeneratedReply(NamedTuple):
    """A reply. finish_reason: "stop" (the model ended it), "length", "prompt too long", "failed: …" or the endpoint's own."""

    text: str
    finish_reason: str | None


class Request(NamedTuple):
    """One prompt to answer, as one user turn. seed: of a sampled reply; None for the greedy one."""

    prompt: str
    seed: int | None = None


class Generator(Protocol):
    """Answers prompts, each one user turn."""

    description: dict[str, Any]
    """What answers: kind, name, fingerprint, settings. No secrets"""

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, GeneratedReply]]:
        """(index, reply) of every request, in the order of completion; from the log where it is there.

        Raises: EndpointError when going on is impossible; what is done stays in the log.
        """


class Likelihood(NamedTuple):
    """Log-likelihood of a continuation (natural logarithm, summed over its tokens), its tokens and its characters."""

    total: float
    tokens: int
    characters: int


class Continued(NamedTuple):
    """A context and the texts that may follow it."""

    context: str
    continuations: tuple[str, ...]


class Scorer(Protocol):
    """Says how likely a model finds given texts."""

    description: dict[str, Any]
    """Who scores: kind, name, fingerprint, settings"""

    def score(self, items: Sequence[Continued]) -> list[list[Likelihood] | None]:
        """The likelihoods of each item's continuations; None where it is longer than the model's positions."""


@dataclass(frozen=True)
class ReplySettings:
    """How one reply is generated."""

    max_new_tokens: int = 512
    """Longest reply, in tokens; a reasoning model needs more"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N, for a Hugging Face directory"""
    dtype: str = "auto"
    """auto (float32 on CPU, else the model's own), float32, bfloat16 or float16"""
    template: str = AUTO_TEMPLATE
    """Chat template: auto (the directory's own), none (plain text), or that of huatuogpt2, huatuogpt, baichuan2-chat,
    disc-medllm, qwen-chat or chatglm3"""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"wrong max_new_tokens: got {self.max_new_tokens}, need at least 1.")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ConfigError(f"wrong dtype: got {self.dtype!r}, need auto, float32, bfloat16 or float16.")
        check_template_name(self.template)


@dataclass(frozen=True)
class GenerationSettings(ReplySettings):
    """How many replies are generated."""

    batch_size: int = 8
    """Prompts generated together from a Hugging Face directory; halved by itself where memory does not suffice"""
    temperature: float = 0.7
    """Sampling temperature of --votes; a single reply is greedy"""

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero("temperature", self.temperature)
        if self.batch_size < 1:
            raise ConfigError(f"wrong batch_size: got {self.batch_size}, need at least 1.")


@dataclass(frozen=True)
class EndpointOptions:
    """How an endpoint is asked."""

    api_key_env: str | None = None
    """Environment variable that holds the API key; none: no key is sent"""
    max_concurrency: int = 8
    """Requests in flight"""
    token_limit_key: str = "max_tokens"
    """Name of the length limit in requests; newer commercial models want max_completion_tokens"""
    request_options: str | None = None
    """YAML or JSON file of further request fields; the line `temperature: null` leaves the temperature out"""

    def __post_init__(self) -> None:
        if self.token_limit_key not in ("max_tokens", "max_completion_tokens"):
            raise ConfigError(
                f"wrong token_limit_key: got {self.token_limit_key!r}, need max_tokens or max_completion_tokens."
            )


@dataclass(frozen=True)
class ModelEndpoint:
    """A model behind an endpoint."""

    base_url: str
    """Address up to /v1"""
    model: str
    """Name of the model there"""
    options: EndpointOptions = field(default_factory=EndpointOptions)
    """Key, concurrency, dialect"""
    patience: PatienceSettings = field(default_factory=PatienceSettings)
    """Time-outs and retries"""


def refuse_ignored(settings: Sequence[Any], why: str) -> None:
    """Refuse settings that have no effect. Raises ConfigError naming the first field that differs from its default."""
    for section in settings:
        for entry in fields(section):
            if (value := getattr(section, entry.name)) != entry.default:
                raise ConfigError(f"--{entry.name.replace('_', '-')} has no effect {why}: got {value!r}. Leave it out.")
