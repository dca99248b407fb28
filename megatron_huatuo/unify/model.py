"""The backend that asks a language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.storage.records import LANGUAGES, Document
from megatron_huatuo.unify.backend import Draft
from megatron_huatuo.unify.endpoint import Endpoint, RequestFailed
from megatron_huatuo.unify.prices import Budget, Price
from megatron_huatuo.unify.prompt import Prompt
from megatron_huatuo.unify.request_log import RequestLog
from megatron_huatuo.unify.settings import EndpointSettings, SamplingSettings
from megatron_huatuo.unify.task import Query


class ModelBackend:
    """Two requests a document, each sampled up to `tries` times. Create it inside the event loop that uses it."""

    def __init__(
        self,
        endpoint: EndpointSettings,
        sampling: SamplingSettings,
        prompts: dict[str, Prompt],
        log: RequestLog,
        *,
        language: str | None = None,
        api_key: str | None = None,
        prices: Mapping[str, Price] | None = None,
        budget_usd: float | None = None,
    ) -> None:
        """language: of questions and answers, by default each passage's own."""
        if language is not None and language not in LANGUAGES:
            raise ConfigError(f"wrong language: got {language!r}, need one of {LANGUAGES}.")
        self.tries = sampling.tries
        self._endpoint_settings, self._sampling, self._prompts = endpoint, sampling, prompts
        self._language, self._log, self._prices = language, log, prices or {}
        if prices is not None and endpoint.model not in prices:
            raise ConfigError(f"no price for model {endpoint.model!r}: got prices of {sorted(prices)}. Add it.")
        self._started_s = time.monotonic()
        self._budget = Budget(self._prices.get(endpoint.model), budget_usd, self._spent_usd())
        self._endpoint = Endpoint(endpoint, api_key, log, self._budget)

    def language(self, given: str) -> str:
        """The language asked for, else the one given."""
        return self._language or given

    def describe(self) -> dict[str, Any]:
        """Model, parameters and prompt hashes."""
        return {
            "backend": "openai",
            "model": self._endpoint_settings.model,
            "language": self._language,
            "temperature": self._sampling.temperature,
            "max_question_tokens": self._sampling.max_question_tokens,
            "max_answer_tokens": self._sampling.max_answer_tokens,
            "tries": self._sampling.tries,
            "prompts": {name: {"version": p.version, "sha256": p.sha256} for name, p in sorted(self._prompts.items())},
        }

    def provenance(self, language: str) -> dict[str, Any]:
        """Model, temperature and the prompts of the pair's language."""
        prompt = self._prompts[language]
        return {
            "backend": "openai",
            "model": self._endpoint_settings.model,
            "temperature": self._sampling.temperature,
            "prompt_version": prompt.version,
            "prompt_sha256": prompt.sha256,
        }

    async def draft_question(self, document: Document, attempt: int) -> Draft:
        """Ask for a question about the passage."""
        message = self._prompts[self.language(document.language)].ask_question(document)
        return await self._draft(message, self._sampling.max_question_tokens, attempt)

    async def draft_answer(self, document: Document, question: str, attempt: int) -> Draft:
        """Ask for the answer with the passage at hand."""
        message = self._prompts[self.language(document.language)].ask_answer(document, question)
        return await self._draft(message, self._sampling.max_answer_tokens, attempt)

    async def draft_reply(self, query: Query, attempt: int) -> Draft:
        """Ask for the answer to a query."""
        message = self._prompts[self.language(query.language)].ask_reply(query.text)
        return await self._draft(message, self._sampling.max_answer_tokens, attempt)

    async def _draft(self, message: str, max_tokens: int, attempt: int) -> Draft:
        payload = {
            "model": self._endpoint_settings.model,
            "messages": [{"role": "user", "content": message}],
            "temperature": self._sampling.temperature,
            self._sampling.token_limit_key: max_tokens,
        }
        try:
            reply = await self._endpoint.complete(payload, attempt)
        except RequestFailed as failed:
            return Draft("", f"endpoint failed: {failed.reason}", final=True)
        if reply.finish_reason == "length":
            return Draft(reply.content, f"cut off: at {max_tokens} tokens")
        if reply.finish_reason == "content_filter":
            return Draft(reply.content, "content filter: the endpoint withheld the reply")
        if not reply.content.strip():
            return Draft("", "empty reply")
        return Draft(reply.content)

    def ledger(self) -> dict[str, Any]:
        """Sums of the whole request log (all runs on this output), and what this run did."""
        by_model = self._log.totals()
        return {
            "requests": sum(totals.replies for totals in by_model),
            "prompt_tokens": sum(totals.prompt_tokens for totals in by_model),
            "completion_tokens": sum(totals.completion_tokens for totals in by_model),
            "cost_usd": self._spent_usd() if self._prices else None,
            "replies_with_estimated_tokens": sum(totals.uncounted for totals in by_model),
            "requests_without_reply": sum(totals.unanswered for totals in by_model),
            "failed_tries": self._log.failures(),
            "by_model": {totals.model: totals._asdict() for totals in by_model},
            "prices": {model: vars(price) for model, price in sorted(self._prices.items())},
            "budget_usd": self._budget.limit_usd,
            "this_run": {
                "requests": self._endpoint.requests,
                "retries": self._endpoint.retries,
                "replies_from_log": self._endpoint.cached,
                "wall_time_s": round(time.monotonic() - self._started_s, 3),
            },
        }

    def _spent_usd(self) -> float:
        """Over all runs on this log; models without a price count nothing."""
        return sum(
            self._prices[totals.model].cost_usd(totals.prompt_tokens, totals.completion_tokens)
            for totals in self._log.totals()
            if totals.model in self._prices
        )

    def spending(self) -> dict[str, str]:
        """What a progress bar shows."""
        shown = {"requests": str(self._endpoint.requests), "retries": str(self._endpoint.retries)}
        if self._prices:
            shown["usd"] = f"{self._budget.spent_usd:.2f}"
        return shown

    async def close(self) -> None:
        """Close the connections; the log belongs to the caller."""
        await self._endpoint.close()


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
