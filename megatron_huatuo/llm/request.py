"""One request to an OpenAI-compatible endpoint: the reply, or what its failure means.

The only file that speaks HTTP. Invariant: the API key stands in the request header and nowhere else; every text
that comes back is searched for it before it leaves this file.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from megatron_huatuo.errors import EndpointError
from megatron_huatuo.llm.endpoint_settings import EndpointSettings
from megatron_huatuo.llm.request_log import Reply

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
        """Create it inside the event loop that uses it."""
        self.settings = settings
        self.answered = False
        self._api_key = api_key
        self._url = f"{settings.base_url.rstrip('/')}/chat/completions"
        self._proxy = _proxy_for(self._url)
        # Servers that want no key take any: some refuse a request without the header.
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {api_key or 'none'}"}
        # No limit of connections and no time-out of its own: the caller has both.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), headers=headers
        )

    async def ask(self, payload: Mapping[str, Any]) -> Reply:
        """One HTTP request. Raises Failure, or EndpointError when no request can succeed."""
        data = json.dumps(payload, ensure_ascii=False).encode()
        try:
            async with (
                asyncio.timeout(self.settings.patience.request_timeout_s),
                self._session.post(self._url, data=data, proxy=self._proxy) as response,
            ):
                self.answered = True
                body = await self._read(response)
        except aiohttp.ClientConnectorError as error:
            raise Failure(UNREACHABLE, retried=True, detail=str(error)) from None
        except (aiohttp.ClientError, ConnectionError):
            raise Failure("connection broken", retried=True, paid=True) from None
        except TimeoutError:
            raise Failure("time-out", retried=True, paid=True) from None
        if response.status != 200:
            raise self._judge_status(response.status, response.headers, body)
        reply = _read_reply(body)
        return reply._replace(
            content=self._clean(reply.content), finish_reason=reply.finish_reason and self._clean(reply.finish_reason)
        )

    @staticmethod
    async def _read(response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > _MAX_REPLY_BYTES:
                raise Failure(f"reply over {_MAX_REPLY_BYTES >> 20} MiB", retried=False, paid=True)
        return bytes(body)

    def _judge_status(self, status: int, headers: Mapping[str, str], raw: bytes) -> Failure | EndpointError:
        """What a status that is no success means."""
        try:
            content: Any = json.loads(raw)
        except (ValueError, RecursionError):
            content = raw.decode("utf-8", "replace")
        error = content.get("error", content) if isinstance(content, dict) else content
        body = error if isinstance(error, dict) else {"message": error}
        text = self._clean(str(body.get("message") or body.get("detail") or body))[:_MAX_ERROR_CHARACTERS]
        detail = json.dumps(error, ensure_ascii=False).lower()
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
        wait_s = _retry_after_s(headers)
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
        await self._session.close()


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


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names for an address (HTTPS_PROXY, NO_PROXY, …)."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header; dates and nonsense are left to back-off."""
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None
