"""The backend that asks a language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from megatron_huatuo.llm.api_key import read_api_key
from megatron_huatuo.llm.budget import Budget
from megatron_huatuo.llm.pair_lists import peel_pairs
from megatron_huatuo.llm.request import HOLDS_KEY
from megatron_huatuo.llm.request_log import RequestLog, known_log, task_log
from megatron_huatuo.llm.response import REFUSAL
from megatron_huatuo.llm.response_error import CONTENT_FILTER
from megatron_huatuo.llm.retries import Endpoint, RequestFailed
from megatron_huatuo.llm.thoughts import peel_reply
from megatron_huatuo.llm.wrapping import peel_answer, peel_question
from megatron_huatuo.storage.lock import exclusive
from megatron_huatuo.storage.records import Document
from megatron_huatuo.unify.writers.writer import ENDPOINT_FAILED, Ask, Draft, Spent
from megatron_huatuo.unify.writers.writer_second_model import SecondModel, note_spent
from megatron_huatuo.unify.writers.writer_settings import ModelOptions
from megatron_huatuo.unify.writers.writer_styles import Style, draw_style

_WITHOUT_TEXT = {
    CONTENT_FILTER: "content filter: the endpoint withholds the reply",
    REFUSAL: "refusal: the model declines",
    HOLDS_KEY: "reply holds the API key",
    "tool_calls": "no text: the model calls a tool",
}


class ModelBackend:
    """The requests that a style has, each sampled up to `tries` times, and those to the second model where there is one."""

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

    def style(self, document: Document) -> Style:
        """The style that seed and weights draw for a passage."""
        options = self._options
        name = draw_style(options.styles, options.seed, document.id)
        return options.style_prompts[name][self.language(document.language)]

    def provenance(self, ask: Ask) -> dict[str, Any]:
        """Models, temperature, style and prompts."""
        options, base = self._options, self._options.prompts[ask.language]
        prompt = ask.style or (options.replay[ask.language] if ask.invitation else base)
        made: dict[str, Any] = {
            "backend": "openai",
            "model": options.endpoint.model,
            "temperature": options.temperature,
            "prompt_version": prompt.version,
            "prompt_sha256": prompt.sha256,
        }
        if ask.style is not None:
            made["style"] = ask.style.style
        if options.check.check_model is not None:
            made |= {"check_model": options.check.check_model, "check_prompt_sha256": base.check_sha256}
        return made

    async def draft(self, ask: Ask, attempt: int, spent: Spent) -> Draft:
        """One request, in the words of its prompt; the reply is peeled of what stands around the text."""
        sampling = self._options.sampling
        max_tokens = sampling.max_question_tokens if ask.kind.endswith("question") else sampling.max_answer_tokens
        parameters = sampling.parameters(max_tokens)
        if ask.invitation is not None:
            parameters["seed"] = ask.invitation.seed + attempt
        payload = self._options.endpoint.payload(self._message(ask), parameters)
        try:
            reply = await self._endpoint.complete(payload, attempt)
        except RequestFailed as failed:
            return Draft("", f"{ENDPOINT_FAILED}: {failed.reason}", final=True)
        note_spent(spent, self._options.endpoint.model, reply)
        if reply.finish_reason == "length":
            return Draft(reply.content, f"cut off: at {max_tokens} tokens")
        if problem := _WITHOUT_TEXT.get(reply.finish_reason or ""):
            # A filter does not change its mind about a passage.
            return Draft("", problem, final=reply.finish_reason == CONTENT_FILTER)
        if not reply.content.strip():
            return Draft("", "empty reply")
        if ask.kind == "pairs":
            pairs, problem = peel_pairs(reply.content)
            return Draft(reply.content, problem, pairs=pairs)
        if ask.kind == "replay answer":  # its own words are what is replayed, code blocks and small talk included
            return Draft(*peel_reply(reply.content))
        return Draft(*(peel_question if ask.kind.endswith("question") else peel_answer)(reply.content))

    def _message(self, ask: Ask) -> str:
        """The one user turn of a request."""
        options = self._options
        if ask.invitation is not None:
            replay = options.replay[ask.language]
            return replay.ask_answer(ask.question) if ask.question else replay.ask_question(ask.invitation)
        if ask.style is None or ask.document is None:
            return options.prompts[ask.language].ask_reply(ask.question)
        if ask.kind == "answer":
            return ask.style.ask_answer(ask.document, ask.question)
        return ask.style.ask_question(ask.document)

    async def check(
        self, document: Document | None, question: str, answer: str, language: str, spent: Spent
    ) -> str | None:
        """The reason why the second model refuses a pair; None when it does not, or when there is no second model."""
        return None if self._second is None else await self._second.refuse(document, question, answer, language, spent)

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
