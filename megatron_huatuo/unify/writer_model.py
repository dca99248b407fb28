"""The backend that asks a language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from megatron_huatuo.llm.api_key import read_api_key
from megatron_huatuo.llm.budget import Budget
from megatron_huatuo.llm.request import HOLDS_KEY
from megatron_huatuo.llm.request_log import RequestLog, known_log, task_log
from megatron_huatuo.llm.response import CONTENT_FILTER, REFUSAL
from megatron_huatuo.llm.retries import Endpoint, RequestFailed
from megatron_huatuo.llm.thoughts import Peeled
from megatron_huatuo.llm.wrapping import peel_answer, peel_question
from megatron_huatuo.storage.lock import exclusive
from megatron_huatuo.storage.records import Document
from megatron_huatuo.unify.input_documents import Query
from megatron_huatuo.unify.writer import ENDPOINT_FAILED, Draft
from megatron_huatuo.unify.writer_prompts import Prompt
from megatron_huatuo.unify.writer_second_model import SecondModel
from megatron_huatuo.unify.writer_settings import ModelOptions

_WITHOUT_TEXT = {
    CONTENT_FILTER: "content filter: the endpoint withholds the reply",
    REFUSAL: "refusal: the model declines",
    HOLDS_KEY: "reply holds the API key",
    "tool_calls": "no text: the model calls a tool",
}


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
        return await self._draft(message, self._options.sampling.max_question_tokens, attempt, peel_question)

    async def draft_answer(self, document: Document, question: str, attempt: int) -> Draft:
        """Ask for the answer with the passage at hand."""
        message = self._prompt(document.language).ask_answer(document, question)
        return await self._draft(message, self._options.sampling.max_answer_tokens, attempt, peel_answer)

    async def draft_reply(self, query: Query, attempt: int) -> Draft:
        """Ask for the answer to a query."""
        message = self._prompt(query.language).ask_reply(query.text)
        return await self._draft(message, self._options.sampling.max_answer_tokens, attempt, peel_answer)

    def _prompt(self, language: str) -> Prompt:
        return self._options.prompts[self.language(language)]

    async def _draft(self, message: str, max_tokens: int, attempt: int, peel: Callable[[str], Peeled]) -> Draft:
        payload = self._options.endpoint.payload(message, self._options.sampling.parameters(max_tokens))
        try:
            reply = await self._endpoint.complete(payload, attempt)
        except RequestFailed as failed:
            return Draft("", f"{ENDPOINT_FAILED}: {failed.reason}", final=True)
        if reply.finish_reason == "length":
            return Draft(reply.content, f"cut off: at {max_tokens} tokens")
        if problem := _WITHOUT_TEXT.get(reply.finish_reason or ""):
            # A filter does not change its mind about a passage.
            return Draft("", problem, final=reply.finish_reason == CONTENT_FILTER)
        if not reply.content.strip():
            return Draft("", "empty reply")
        return Draft(*peel(reply.content))

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
        budget = Budget(options.prices, options.shared_budget(requests))
        backend = ModelBackend(options, log, budget)
        try:
            yield backend
        finally:
            await backend.close()
            budget.close()
