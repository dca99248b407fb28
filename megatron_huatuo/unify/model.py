"""The backend that asks a language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.storage.lock import exclusive
from megatron_huatuo.storage.records import Document
from megatron_huatuo.unify.backend import ENDPOINT_FAILED, Draft
from megatron_huatuo.unify.budget import Budget, Purse
from megatron_huatuo.unify.endpoint import Endpoint, RequestFailed
from megatron_huatuo.unify.prices import Price
from megatron_huatuo.unify.prompt import Prompt
from megatron_huatuo.unify.request_log import RequestLog, known_log, task_log
from megatron_huatuo.unify.second_model import SecondModel
from megatron_huatuo.unify.settings import CheckSettings, EndpointSettings, SamplingSettings
from megatron_huatuo.unify.task import Query


@dataclass(frozen=True)
class ModelOptions:
    """Which models are asked, how, and for how much. Holds no secret: it travels to the machines where tasks run.

    language: of questions and answers, by default each passage's own.
    """

    endpoint: EndpointSettings
    sampling: SamplingSettings
    prompts: Mapping[str, Prompt]
    check: CheckSettings = field(default_factory=CheckSettings)
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
        self.check_endpoint()

    def check_endpoint(self) -> EndpointSettings | None:
        """Where the second model is reached."""
        if self.check.check_model is None:
            return None
        return replace(
            self.endpoint, model=self.check.check_model, base_url=self.check.check_base_url or self.endpoint.base_url
        )

    def purse(self, requests: Path) -> Purse | None:
        """The budget that all tasks share, in the folder of the requests."""
        return None if self.budget_usd is None else Purse(requests / "granted_usd", self.budget_usd)

    def describe(self) -> dict[str, Any]:
        """What decides the output besides the documents: models, parameters, prompt hashes."""
        described: dict[str, Any] = {
            "backend": "openai",
            "model": self.endpoint.model,
            "language": self.language,
            "temperature": self.sampling.temperature,
            "max_question_tokens": self.sampling.max_question_tokens,
            "max_answer_tokens": self.sampling.max_answer_tokens,
            "tries": self.sampling.tries,
            "prompts": {name: {"version": p.version, "sha256": p.sha256} for name, p in sorted(self.prompts.items())},
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


class ModelBackend:
    """Two requests a document, each sampled up to `tries` times, and one for the second model where there is one."""

    def __init__(self, options: ModelOptions, log: RequestLog, budget: Budget) -> None:
        """Create it inside the event loop that uses it."""
        self.tries = options.sampling.tries
        self._options, self._budget = options, budget
        key = read_api_key(options.api_key_env)
        self._endpoint = Endpoint(options.endpoint, key, log, budget)
        self._endpoints = [self._endpoint]
        self._second: SecondModel | None = None
        if (second := options.check_endpoint()) is not None:
            # A key goes to the address that it was given for, and to no other.
            elsewhere = options.check.check_base_url is not None
            second_key = read_api_key(options.check.check_api_key_env) if elsewhere else key
            endpoint = Endpoint(second, second_key, log, budget)
            if not elsewhere:
                endpoint.slots = self._endpoint.slots
            self._endpoints.append(endpoint)
            self._second = SecondModel(endpoint, options.prompts, options.sampling, options.check.max_check_tokens)

    def language(self, given: str) -> str:
        """The language asked for, else the one given."""
        return self._options.language or given

    def provenance(self, language: str) -> dict[str, Any]:
        """Models, temperature and the prompts of the pair's language."""
        options, prompt = self._options, self._options.prompts[language]
        made: dict[str, Any] = {
            "backend": "openai",
            "model": options.endpoint.model,
            "temperature": options.sampling.temperature,
            "prompt_version": prompt.version,
            "prompt_sha256": prompt.sha256,
        }
        if options.check.check_model is not None:
            made |= {"check_model": options.check.check_model, "check_prompt_sha256": prompt.check_sha256}
        return made

    async def draft_question(self, document: Document, attempt: int) -> Draft:
        """Ask for a question about the passage."""
        message = self._prompt(document.language).ask_question(document)
        return await self._draft(message, self._options.sampling.max_question_tokens, attempt)

    async def draft_answer(self, document: Document, question: str, attempt: int) -> Draft:
        """Ask for the answer with the passage at hand."""
        message = self._prompt(document.language).ask_answer(document, question)
        return await self._draft(message, self._options.sampling.max_answer_tokens, attempt)

    async def draft_reply(self, query: Query, attempt: int) -> Draft:
        """Ask for the answer to a query."""
        message = self._prompt(query.language).ask_reply(query.text)
        return await self._draft(message, self._options.sampling.max_answer_tokens, attempt)

    def _prompt(self, language: str) -> Prompt:
        return self._options.prompts[self.language(language)]

    async def _draft(self, message: str, max_tokens: int, attempt: int) -> Draft:
        payload = {
            "model": self._options.endpoint.model,
            "messages": [{"role": "user", "content": message}],
            "temperature": self._options.sampling.temperature,
            self._options.sampling.token_limit_key: max_tokens,
        }
        try:
            reply = await self._endpoint.complete(payload, attempt)
        except RequestFailed as failed:
            return Draft("", f"{ENDPOINT_FAILED}: {failed.reason}", final=True)
        if reply.finish_reason == "length":
            return Draft(reply.content, f"cut off: at {max_tokens} tokens")
        if reply.finish_reason == "content_filter":
            return Draft(reply.content, "content filter: the endpoint withheld the reply")
        if not reply.content.strip():
            return Draft("", "empty reply")
        return Draft(reply.content)

    async def check(self, document: Document | None, question: str, answer: str, language: str) -> str | None:
        """The reason why the second model refuses a pair; None when it does not, or when there is no second model."""
        return None if self._second is None else await self._second.refuse(document, question, answer, language)

    def usage(self) -> dict[str, float]:
        """What this task did so far."""
        return {
            "requests": sum(endpoint.requests for endpoint in self._endpoints),
            "retries": sum(endpoint.retries for endpoint in self._endpoints),
            "replies_from_log": sum(endpoint.cached for endpoint in self._endpoints),
            "cost_usd": self._budget.spent_usd,
        }

    async def close(self) -> None:
        """Close the connections; log and budget belong to the caller."""
        for endpoint in self._endpoints:
            await endpoint.close()


@contextlib.asynccontextmanager
async def open_model(options: ModelOptions, requests: Path, rank: int) -> AsyncIterator[ModelBackend]:
    """The backend of task `rank`, with its request log and its part of the budget.

    Raises: DataError when the same task is at work elsewhere.
    """
    path = task_log(requests, rank)
    with exclusive(path), contextlib.closing(RequestLog(path, known_log(requests))) as log:
        budget = Budget(options.prices, options.purse(requests))
        backend = ModelBackend(options, log, budget)
        try:
            yield backend
        finally:
            await backend.close()
            budget.close()


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
