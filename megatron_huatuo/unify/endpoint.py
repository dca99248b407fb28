"""One OpenAI-compatible endpoint: bounded requests, kind retries, every reply committed before it is used.

The only file that imports `openai`. Invariant: the API key stands in the request header and nowhere else; every text
that comes back is searched for it before it is logged or stored.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import httpx2
import openai
from openai import AsyncOpenAI, DefaultAioHttpClient

from megatron_huatuo.errors import EndpointError
from megatron_huatuo.storage.manifest import fingerprint
from megatron_huatuo.unify.budget import Budget
from megatron_huatuo.unify.request_log import Reply, RequestLog
from megatron_huatuo.unify.settings import EndpointSettings

_FATAL_STATUS = {
    401: "the API key is not accepted",
    402: "payment is due",
    403: "access is denied",
    404: "no such model or path",
}
_RETRIED_STATUS = {408, 409, 425, 429}
_QUOTA_CODES = ("insufficient_quota", "billing", "quota_exceeded", "exceeded your current quota")
_MAX_REPLY_BYTES = 8 << 20
_MAX_ERROR_CHARACTERS = 300
_REDACTED = "[key]"
# A server that never answered is most likely not there: so many tries, at most a second apart, and the run ends.
_UNREACHABLE = "no connection"
_FIRST_CONTACT_TRIES = 3
_FIRST_CONTACT_WAIT_S = 1.0


class RequestFailed(Exception):
    """One request that has no reply after all tries. `reason` is fit for a report."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Failure(Exception):
    """One failed try. retried: whether another try makes sense; wait_s: what the endpoint asked for; paid: perhaps."""

    def __init__(
        self, reason: str, *, retried: bool, wait_s: float | None = None, paid: bool = False, detail: str = ""
    ) -> None:
        super().__init__(reason)
        self.reason, self.retried, self.wait_s, self.paid = reason, retried, wait_s, paid
        self.full_reason = f"{reason}: {detail}" if detail else reason


class Endpoint:
    """Asks one model, through the request log and within the budget. Lives inside one event loop."""

    def __init__(self, settings: EndpointSettings, api_key: str | None, log: RequestLog, budget: Budget) -> None:
        self.settings, self.log, self.budget = settings, log, budget
        self._api_key = api_key
        self.slots = asyncio.Semaphore(settings.max_concurrency)
        self._in_flight: dict[tuple[str, int], asyncio.Event] = {}
        self._answered = False
        self._failures_in_a_row = 0
        self._refused: EndpointError | None = None
        self._not_before = 0.0
        self._random = random.Random()
        self.requests, self.retries, self.cached = 0, 0, 0
        self._client = AsyncOpenAI(
            base_url=settings.base_url,
            api_key=api_key or "none",  # otherwise the client would take a key from the environment unasked
            max_retries=0,
            timeout=None,  # ours covers the whole request; the client's would also name resets time-outs
            http_client=DefaultAioHttpClient(),
        )

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
            reserved = await self.budget.reserve(self.settings.model, *_most_tokens(payload))
            cost = 0.0
            self.log.note_sent(key, attempt, self.settings.model)
            try:
                reply = await self._try_until_answered(payload, key, attempt)
            except EndpointError as error:
                self._refused = error
                raise
            else:
                cost = self.budget.cost_usd(self.settings.model, reply.prompt_tokens, reply.completion_tokens)
            finally:
                await self.budget.settle(reserved, cost)
        self._failures_in_a_row = 0
        return reply

    async def _try_until_answered(self, payload: Mapping[str, Any], key: str, attempt: int) -> Reply:
        perhaps_paid = False
        for number in range(self.settings.patience.max_retries + 1):
            await self._wait_for_permission()
            try:
                self.requests += 1
                reply = self._count_tokens(await self._try_once(payload), payload)
                self.log.note_reply(key, attempt, reply)
                return reply
            except _Failure as failure:
                self.log.note_failure(failure.reason)
                last, perhaps_paid = failure, perhaps_paid or failure.paid
            if not last.retried:
                break
            enough = number + 1 >= min(_FIRST_CONTACT_TRIES, self.settings.patience.max_retries + 1)
            if enough and not self._answered and last.reason == _UNREACHABLE:
                self.log.note_unpaid(key, attempt)
                raise self._nobody_there(last)
            if number < self.settings.patience.max_retries:
                self.retries += 1
                await asyncio.sleep(self._wait_s(number, last))
        if not perhaps_paid:
            self.log.note_unpaid(key, attempt)
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= self.settings.patience.max_failures_in_a_row:
            raise EndpointError(
                f"endpoint fails for good: {self._failures_in_a_row} requests in a row, the last with {last.full_reason} "
                f"({self.settings.base_url}). Check it and run again: what is paid is not paid twice."
            )
        raise RequestFailed(last.full_reason)

    async def _try_once(self, payload: Mapping[str, Any]) -> Reply:
        """One HTTP request. Raises _Failure, or EndpointError when no request can succeed."""
        try:
            async with asyncio.timeout(self.settings.patience.request_timeout_s):
                # As extra_body the payload goes out as it is: the client would walk through every message first, which
                # takes a third of its time.
                request = self._client.chat.completions.with_streaming_response.create(
                    model=self.settings.model, messages=[], extra_body=payload
                )
                async with request as response:
                    self._answered = True
                    body = bytearray()
                    async for chunk in response.iter_bytes():
                        body += chunk
                        if len(body) > _MAX_REPLY_BYTES:
                            raise _Failure(f"reply over {_MAX_REPLY_BYTES >> 20} MiB", retried=False, paid=True)
        except openai.APIStatusError as error:
            self._answered = True
            raise self._judge_status(error) from None
        except (openai.APIConnectionError, httpx2.HTTPError, aiohttp.ClientError) as error:
            if refused := _refused_connection(error):
                raise _Failure(_UNREACHABLE, retried=True, detail=str(refused.os_error)) from None
            raise _Failure("connection broken", retried=True, paid=True) from None
        except TimeoutError:
            raise _Failure("time-out", retried=True, paid=True) from None
        return self._read_reply(bytes(body))

    def _nobody_there(self, failure: _Failure) -> EndpointError:
        url, model = self.settings.base_url, self.settings.model
        return EndpointError(
            f"no server at {url}: {failure.full_reason}. Start one there, for instance with `vllm serve {model} --port "
            f"{urlsplit(url).port or 8000}` or `transformers serve {model}`, or correct --base-url."
        )

    def _judge_status(self, error: openai.APIStatusError) -> _Failure | EndpointError:
        """What a status that is no success means."""
        status, body = error.status_code, error.body if isinstance(error.body, dict) else {}
        text = self._clean(str(body.get("message") or body.get("detail") or error.message))[:_MAX_ERROR_CHARACTERS]
        detail = json.dumps(error.body, ensure_ascii=False, default=str).lower()
        if status in _FATAL_STATUS:
            return EndpointError(
                f"endpoint refuses: HTTP {status}, {_FATAL_STATUS[status]}: {text} ({self.settings.base_url}). "
                "Check --api-key-env, --model and --base-url."
            )
        if status == 429 and any(code in detail for code in _QUOTA_CODES):
            return EndpointError(
                f"quota is used up: HTTP 429: {text} ({self.settings.base_url}). "
                "Renew it and run again: what is paid is not paid twice."
            )
        wait_s = _retry_after_s(error.response.headers)
        if wait_s is not None and wait_s > self.settings.patience.max_retry_after_s:
            return EndpointError(
                f"endpoint asks to wait {wait_s:.0f} s: more than max_retry_after_s={self.settings.patience.max_retry_after_s:.0f} "
                f"(HTTP {status}, {self.settings.base_url}). Run again later: what is paid is not paid twice."
            )
        retried = status in _RETRIED_STATUS or status >= 500
        return _Failure(f"HTTP {status}", retried=retried, wait_s=wait_s, detail=text)

    def _read_reply(self, body: bytes) -> Reply:
        """The reply in a body of status 200. Garbage is a failed try; an answer without text is a reply without text."""
        try:
            content = json.loads(body)
            choices = content["choices"]
            usage = content.get("usage") or {}
            tokens: list[Any] = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            counted = all(isinstance(value, int) and value >= 0 for value in tokens)
            prompt_tokens, completion_tokens = tokens if counted else (0, 0)
            if not choices:
                return Reply("", "no choices", prompt_tokens, completion_tokens, counted)
            text = choices[0]["message"].get("content") or ""
            finish_reason = choices[0].get("finish_reason")
            if not isinstance(text, str) or not isinstance(finish_reason, str | None):
                raise TypeError("content is no text")
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            raise _Failure("garbage instead of a completion", retried=True) from None
        # Halves of characters, which no UTF-8 file can hold, become U+FFFD: the gates refuse it.
        text = self._clean(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        return Reply(text, finish_reason, prompt_tokens, completion_tokens, counted)

    @staticmethod
    def _count_tokens(reply: Reply, payload: Mapping[str, Any]) -> Reply:
        """Endpoints that do not count tokens get the most that it can have been, so that a budget holds."""
        if reply.counted:
            return reply
        prompt_tokens, most_completion_tokens = _most_tokens(payload)
        completion_tokens = min(most_completion_tokens, len(reply.content.encode()))
        return reply._replace(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    def _wait_s(self, number: int, failure: _Failure) -> float:
        """Back-off with full jitter over its upper half; a wish of the endpoint holds for everyone in flight."""
        if failure.wait_s is not None:
            loop_time = asyncio.get_running_loop().time()
            self._not_before = max(self._not_before, loop_time + failure.wait_s)
            return 0.0
        longest = min(self.settings.patience.max_wait_s, self.settings.patience.backoff_s * 2**number)
        if not self._answered and failure.reason == _UNREACHABLE:
            longest = min(longest, _FIRST_CONTACT_WAIT_S)
        return longest * self._random.uniform(0.5, 1.0)

    async def _wait_for_permission(self) -> None:
        wait_s = self._not_before - asyncio.get_running_loop().time()
        if wait_s > 0:
            # Not all at the same moment.
            await asyncio.sleep(wait_s * self._random.uniform(1.0, 1.1))

    def _clean(self, text: str) -> str:
        return text.replace(self._api_key, _REDACTED) if self._api_key else text

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def _refused_connection(error: BaseException | None) -> aiohttp.ClientConnectorError | None:
    """The failure to connect, if that is what is behind an error: nothing listens, or the name is unknown."""
    while error is not None and not isinstance(error, aiohttp.ClientConnectorError):
        error = error.__cause__ or error.__context__
    return error


def _most_tokens(payload: Mapping[str, Any]) -> tuple[int, int]:
    """Upper bounds of prompt and completion tokens: no token is shorter than a byte; 16 more a message for its frame."""
    prompt = sum(len(message["content"].encode()) + 16 for message in payload["messages"])
    return prompt, int(payload.get("max_tokens") or payload["max_completion_tokens"])


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header; dates and nonsense are left to back-off."""
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None
