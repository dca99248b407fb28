"""One request to an OpenAI-compatible endpoint, and the only file that speaks HTTP.

Invariant: the API key stands in the request header and nowhere else. Errors are shown without it; a reply that holds it
is dropped, never edited.

Not through the openai client: a request costs several times as much there over either of its transports (tools/benchmark.py
unify), and bodies that real servers send are judged here as they are, before any client has typed them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson

from megatron_huatuo.errors import ConfigError, EndpointError
from megatron_huatuo.llm.api_key import ApiKey
from megatron_huatuo.llm.endpoint_settings import EndpointSettings
from megatron_huatuo.llm.request_log import Reply
from megatron_huatuo.llm.response import read_response
from megatron_huatuo.llm.response_error import Asked, Failure

UNREACHABLE = "no connection"
HOLDS_KEY = "holds the API key"
"""Finish reason of a reply whose text was dropped because the API key stands in it"""
_MAX_REPLY_BYTES = 8 << 20
_MAX_SHOWN_CHARACTERS = 200


class Client:
    """Asks one model once. Lives inside one event loop. answered: whether anything ever came back."""

    def __init__(self, settings: EndpointSettings, api_key: ApiKey) -> None:
        """Create it inside the event loop that uses it."""
        self.settings = settings
        self.answered = False
        self._api_key = api_key
        self._url = f"{settings.base_url.rstrip('/')}/chat/completions"
        self._proxy = _proxy_for(self._url)
        # No limit of connections and no time-out of its own: the caller has both.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"Content-Type": "application/json", "Authorization": api_key.header()},
        )

    async def ask(self, payload: Mapping[str, Any]) -> Reply:
        """One HTTP request. Raises Failure, or EndpointError when no request can succeed."""
        try:
            async with (
                asyncio.timeout(self.settings.patience.request_timeout_s),
                self._session.post(self._url, data=orjson.dumps(payload), proxy=self._proxy) as response,
            ):
                self.answered = True
                if response.method != "POST":
                    raise EndpointError(
                        f"endpoint has moved: {self._url} redirects to {response.url}, where a request would lose its body. Correct --base-url."
                    )
                body = await self._read(response)
        except aiohttp.ClientConnectorError as error:
            raise Failure(UNREACHABLE, retried=True, detail=str(error)) from None
        except (aiohttp.ClientError, ConnectionError) as error:
            detail = self._api_key.redact(str(error))[:_MAX_SHOWN_CHARACTERS]
            raise Failure("connection broken", retried=True, paid=True, detail=detail) from None
        except TimeoutError:
            raise Failure("time-out", retried=True, paid=True) from None
        parameters = tuple(name for name in payload if name not in ("model", "messages"))
        asked = Asked(
            self.settings.base_url, parameters, self.settings.patience.max_retry_after_s, self._api_key.redact
        )
        reply = read_response(response.status, response.headers, body, asked)
        return reply._replace(content="", finish_reason=HOLDS_KEY) if self._api_key.is_in(reply.content) else reply

    @staticmethod
    async def _read(response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > _MAX_REPLY_BYTES:
                raise Failure(f"reply over {_MAX_REPLY_BYTES >> 20} MiB", retried=False, paid=True)
        return bytes(body)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names for an address (HTTPS_PROXY, ALL_PROXY, NO_PROXY, …); HOST:PORT is one of HTTP.

    Raises: ConfigError for one that is not spoken to, such as SOCKS.
    """
    parts, proxies = urlsplit(url), getproxies()
    proxy = None if proxy_bypass(parts.netloc) else proxies.get(parts.scheme) or proxies.get("all")
    if proxy is None:
        return None
    kind, _, address = proxy.rpartition("://")
    if kind.lower() not in ("", "http", "https"):
        raise ConfigError(
            f"proxy of another kind: got {kind}:// in the environment for {parts.scheme}, need http://HOST:PORT. Give the HTTP port of "
            f"the proxy, or go past it with NO_PROXY={parts.hostname}."
        )
    return f"{kind or 'http'}://{address}"
