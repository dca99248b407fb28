"""One request to an OpenAI-compatible endpoint: the reply, or what its failure means.

The only file that imports `openai`. Invariant: the API key stands in the request header and nowhere else; every text
that comes back is searched for it before it leaves this file.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import aiohttp
import httpx2
import openai
from openai import AsyncOpenAI, DefaultAioHttpClient

from megatron_huatuo.errors import EndpointError
from megatron_huatuo.unify.request_log import Reply
from megatron_huatuo.unify.settings import EndpointSettings

UNREACHABLE = "no connection"
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


class Failure(Exception):
    """One failed try. retried: whether another try makes sense; wait_s: what the endpoint asked for; paid: perhaps."""

    def __init__(
        self, reason: str, *, retried: bool, wait_s: float | None = None, paid: bool = False, detail: str = ""
    ) -> None:
        super().__init__(reason)
        self.reason, self.retried, self.wait_s, self.paid = reason, retried, wait_s, paid
        self.full_reason = f"{reason}: {detail}" if detail else reason


class Client:
    """Asks one model once. Lives inside one event loop. answered: whether anything ever came back."""

    def __init__(self, settings: EndpointSettings, api_key: str | None) -> None:
        self.settings = settings
        self.answered = False
        self._api_key = api_key
        self._openai = AsyncOpenAI(
            base_url=settings.base_url,
            api_key=api_key or "none",  # otherwise the client would take a key from the environment unasked
            max_retries=0,
            timeout=None,  # ours covers the whole request; the client's would also name resets time-outs
            http_client=DefaultAioHttpClient(),
        )

    async def ask(self, payload: Mapping[str, Any]) -> Reply:
        """One HTTP request. Raises Failure, or EndpointError when no request can succeed."""
        try:
            async with asyncio.timeout(self.settings.patience.request_timeout_s):
                # As extra_body the payload goes out as it is: the client would walk through every message first, which
                # takes a third of its time.
                request = self._openai.chat.completions.with_streaming_response.create(
                    model=self.settings.model, messages=[], extra_body=payload
                )
                async with request as response:
                    self.answered = True
                    body = bytearray()
                    async for chunk in response.iter_bytes():
                        body += chunk
                        if len(body) > _MAX_REPLY_BYTES:
                            raise Failure(f"reply over {_MAX_REPLY_BYTES >> 20} MiB", retried=False, paid=True)
        except openai.APIStatusError as error:
            self.answered = True
            raise self._judge_status(error) from None
        except (openai.APIConnectionError, httpx2.HTTPError, aiohttp.ClientError) as error:
            if refused := _refused_connection(error):
                raise Failure(UNREACHABLE, retried=True, detail=str(refused.os_error)) from None
            raise Failure("connection broken", retried=True, paid=True) from None
        except TimeoutError:
            raise Failure("time-out", retried=True, paid=True) from None
        reply = _read_reply(bytes(body))
        return reply._replace(
            content=self._clean(reply.content), finish_reason=reply.finish_reason and self._clean(reply.finish_reason)
        )

    def _judge_status(self, error: openai.APIStatusError) -> Failure | EndpointError:
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
        return Failure(f"HTTP {status}", retried=retried, wait_s=wait_s, detail=text)

    def _clean(self, text: str) -> str:
        return text.replace(self._api_key, _REDACTED) if self._api_key else text

    async def close(self) -> None:
        """Close the connections."""
        await self._openai.close()


def _read_reply(body: bytes) -> Reply:
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
        raise Failure("garbage instead of a completion", retried=True) from None
    # Halves of characters, which no UTF-8 file can hold, become U+FFFD: the gates refuse it.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return Reply(text, finish_reason, prompt_tokens, completion_tokens, counted)


def _refused_connection(error: BaseException | None) -> aiohttp.ClientConnectorError | None:
    """The failure to connect, if that is what is behind an error: nothing listens, or the name is unknown."""
    while error is not None and not isinstance(error, aiohttp.ClientConnectorError):
        error = error.__cause__ or error.__context__
    return error


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header; dates and nonsense are left to back-off."""
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None
