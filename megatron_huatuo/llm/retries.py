"""One endpoint, asked with patience: bounded requests, kind retries, every reply committed before it is used.

Invariant: nothing is asked whose reply is in the log, or that the budget might not pay for.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from megatron_huatuo.errors import EndpointError
from megatron_huatuo.llm.api_key import ApiKey
from megatron_huatuo.llm.budget import Budget, BudgetReached
from megatron_huatuo.llm.endpoint_settings import EndpointSettings, most_completion_tokens, token_limits
from megatron_huatuo.llm.request import UNREACHABLE, Client
from megatron_huatuo.llm.request_log import Reply, RequestLog
from megatron_huatuo.llm.response_error import Failure
from megatron_huatuo.storage.manifest import fingerprint

# A server that never answered is most likely not there: so many tries, at most a second apart, and the run ends.
_FIRST_CONTACT_TRIES = 3
_FIRST_CONTACT_WAIT_S = 1.0


class RequestFailed(Exception):
    """One request that has no reply after all tries. `reason` is fit for a report."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Endpoint:
    """Asks one model, through the request log and within the budget. Lives inside one event loop."""

    def __init__(self, settings: EndpointSettings, api_key: ApiKey, log: RequestLog, budget: Budget) -> None:
        self.settings, self.log, self.budget = settings, log, budget
        self.slots = asyncio.Semaphore(settings.max_concurrency)
        self._in_flight: dict[tuple[str, int], asyncio.Event] = {}
        self._failures_in_a_row = 0
        self._refused: EndpointError | None = None
        self._not_before = 0.0
        self._random = random.Random()
        self.requests, self.retries, self.cached = 0, 0, 0
        self._client = Client(settings, api_key)

    async def complete(self, payload: Mapping[str, Any], attempt: int) -> Reply:
        """The reply to a chat-completion payload; from the log when it is there.

        attempt: 0, 1, … for further samples of the same payload.
        Raises: RequestFailed for this request alone; EndpointError and BudgetReached end the run.
        """
        key = fingerprint(payload)
        while (same := self._in_flight.get((key, attempt))) is not None:  # equal passages close together
            await same.wait()
        if (known := self.log.find(key, attempt)) is not None:
            self.cached += 1
            return known
        done = self._in_flight[key, attempt] = asyncio.Event()
        try:
            return await self._ask(payload, key, attempt)
        finally:
            del self._in_flight[key, attempt]
            done.set()

    async def _ask(self, payload: Mapping[str, Any], key: str, attempt: int) -> Reply:
        """The reply of the endpoint, within the limits of concurrency and budget."""
        async with self.slots:
            if self._refused is not None:
                raise self._refused
            try:
                reply = await self._try_until_answered(payload, key, attempt)
            except EndpointError as error:
                self._refused = error
                raise
        self._failures_in_a_row = 0
        return reply

    async def _try_until_answered(self, payload: Mapping[str, Any], key: str, attempt: int) -> Reply:
        perhaps_paid, most_tries = False, self.settings.patience.max_retries + 1
        for number in range(most_tries):
            await self._wait_for_permission()
            try:
                return await self._try_once(payload, key, attempt)
            except Failure as failure:
                self.log.note_failure(failure.reason)
                # A reply with its tokens is accounted for; a time-out may have been paid for without anyone knowing.
                last, perhaps_paid = failure, perhaps_paid or (failure.paid and failure.tokens is None)
            except (EndpointError, BudgetReached):
                if not perhaps_paid:
                    self.log.note_unpaid(key, attempt)
                raise
            if not last.retried:
                break
            enough = number + 1 >= min(_FIRST_CONTACT_TRIES, most_tries)
            if enough and not self._client.answered and last.reason == UNREACHABLE:
                self.log.note_unpaid(key, attempt)
                raise self._nobody_there(last)
            if number + 1 < most_tries:
                self.retries += 1
                await asyncio.sleep(self._wait_s(number, last))
        if not perhaps_paid:
            self.log.note_unpaid(key, attempt)
        if last.about_prompt:
            raise RequestFailed(last.full_reason)
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= self.settings.patience.max_failures_in_a_row:
            raise EndpointError(
                f"endpoint fails for good: {self._failures_in_a_row} requests in a row, the last with {last.full_reason} "
                f"({self.settings.base_url}). Check it and run again: what is paid is not paid twice."
            )
        raise RequestFailed(last.full_reason)

    async def _try_once(self, payload: Mapping[str, Any], key: str, attempt: int) -> Reply:
        """One request, with the money for it set aside; its reply is committed, and what it cost is counted in any case."""
        model = self.settings.model
        reserved, cost = 0.0, 0.0
        if self.budget.shared is not None:
            most = _most_prompt_tokens(payload), most_completion_tokens(payload)
            reserved = await self.budget.reserve(model, *most)
        try:
            self.log.note_sent(key, attempt, model)
            self.requests += 1
            reply = _count_tokens(await self._client.ask(payload), payload)
            self.log.note_reply(key, attempt, reply)
            cost = self.budget.cost_usd(model, reply.prompt_tokens, reply.completion_tokens)
            return reply
        except Failure as failure:
            if failure.tokens is not None:
                self.log.note_unread(model, *failure.tokens)
                cost = self.budget.cost_usd(model, *failure.tokens)
            raise
        finally:
            await self.budget.settle(reserved, cost)

    def _nobody_there(self, failure: Failure) -> EndpointError:
        url, model = self.settings.base_url, self.settings.model
        return EndpointError(
            f"no server at {url}: {failure.full_reason}. Start one there, for instance with `vllm serve {model} --port "
            f"{urlsplit(url).port or 8000}` or `transformers serve {model}`, or correct --base-url."
        )

    def _wait_s(self, number: int, failure: Failure) -> float:
        """Back-off with full jitter over its upper half; a wish of the endpoint holds for everyone in flight."""
        if failure.wait_s is not None:
            loop_time = asyncio.get_running_loop().time()
            self._not_before = max(self._not_before, loop_time + failure.wait_s)
            return 0.0
        longest = min(self.settings.patience.max_wait_s, self.settings.patience.backoff_s * 2**number)
        if not self._client.answered and failure.reason == UNREACHABLE:
            longest = min(longest, _FIRST_CONTACT_WAIT_S)
        return longest * self._random.uniform(0.5, 1.0)

    async def _wait_for_permission(self) -> None:
        wait_s = self._not_before - asyncio.get_running_loop().time()
        if wait_s > 0:
            # Not all at the same moment.
            await asyncio.sleep(wait_s * self._random.uniform(1.0, 1.1))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def _count_tokens(reply: Reply, payload: Mapping[str, Any]) -> Reply:
    """Endpoints that do not count tokens get the most that it can have been, so that a budget holds."""
    if reply.counted:
        return reply
    most = [len(reply.content.encode()), *token_limits(payload)]
    return reply._replace(prompt_tokens=_most_prompt_tokens(payload), completion_tokens=min(most))


def _most_prompt_tokens(payload: Mapping[str, Any]) -> int:
    """Upper bound of prompt tokens: no token is shorter than a byte; 16 more per message for its frame."""
    return sum(len(message["content"].encode()) + 16 for message in payload["messages"])
