"""A real HTTP server that speaks the chat-completion protocol, and misbehaves on command."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

Handler = Callable[["Asked"], Any]


@dataclass(frozen=True)
class Asked:
    """One request as it arrived: its place in the order of arrival, payload and headers."""

    number: int
    payload: dict[str, Any]
    headers: dict[str, str]

    @property
    def prompt(self) -> str:
        return self.payload["messages"][0]["content"]

    @property
    def passage(self) -> str:
        """The passage in the bundled prompts."""
        return re.split(r"【内容】|\[Content\]", self.prompt)[1].split("【问题】")[0].split("[Question]")[0].strip()

    @property
    def wants_answer(self) -> bool:
        return "【问题】" in self.prompt or "[Question]" in self.prompt


@dataclass
class Reply:
    """What the server does: sends a body, or breaks off."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    reset: bool = False


def completion(text: str | None, finish_reason: str = "stop", usage: tuple[int, int] | None = (11, 7)) -> Reply:
    """A well-formed completion."""
    content: dict[str, Any] = {
        "id": "c",
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}],
    }
    if usage:
        content["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return Reply(json.dumps(content).encode(), headers={"Content-Type": "application/json"})


def echo_writer(asked: Asked) -> Reply:
    """A model that writes good pairs: the answer is the passage without its title."""
    text = asked.passage.split("\n", 1)[-1]
    if asked.wants_answer:
        return completion(text)
    chinese = "【内容】" in asked.prompt
    head = text[:12].rstrip("。，. ")
    return completion(f"请说明{head}的要点是什么？" if chinese else f"What should a patient know about {head}?")


def slow_writer(delay_s: float) -> Handler:
    """`echo_writer`, which takes its time over each reply."""
    return lambda asked: replace(echo_writer(asked), delay_s=delay_s)


class EndpointServer:
    """Serves on a free port from a thread of its own; `asked` holds every request that arrived."""

    def __init__(self, handler: Handler = echo_writer) -> None:
        self.handler = handler
        self.asked: list[Asked] = []
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> EndpointServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        application = web.Application(client_max_size=64 << 20)
        application.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(application, access_log=None)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.1)
        self._loop.run_until_complete(site.start())
        self.port = site._server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked = Asked(len(self.asked), await request.json(), dict(request.headers))
        self.asked.append(asked)
        reply = self.handler(asked)
        if reply.delay_s:
            await asyncio.sleep(reply.delay_s)
        if reply.reset:
            request.transport.abort()
            await asyncio.sleep(0)
        return web.Response(body=reply.body, status=reply.status, headers=reply.headers)
