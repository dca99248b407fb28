"""Replies from an OpenAI-compatible endpoint, through the client that unification uses.

Invariant: no paid reply is asked for twice. When the endpoint refuses for good, requests in flight may still finish.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_huatuo.evaluate.generate import GeneratedReply, GenerationSettings, ModelEndpoint, Request
from megatron_huatuo.llm.api_key import read_api_key
from megatron_huatuo.llm.budget import Budget
from megatron_huatuo.llm.endpoint_settings import EndpointSettings, load_request_options
from megatron_huatuo.llm.request_log import RequestLog
from megatron_huatuo.llm.retries import Endpoint, RequestFailed
from megatron_huatuo.storage.manifest import fingerprint

_GRACE_S = 30.0


class EndpointGenerator:
    """Answers prompts with one model of one endpoint, several at a time."""

    def __init__(self, endpoint: ModelEndpoint, log_directory: Path, settings: GenerationSettings) -> None:
        options = endpoint.options
        request_options = load_request_options(options.request_options)
        self._settings = EndpointSettings(
            endpoint.base_url, endpoint.model, options.max_concurrency, endpoint.patience, request_options
        )
        self._api_key = read_api_key(options.api_key_env)
        self._limit = {options.token_limit_key: settings.max_new_tokens}
        self._temperature = settings.temperature
        identity = {"kind": "endpoint", "base_url": endpoint.base_url, "model": endpoint.model}
        self.description: dict[str, Any] = {
            **identity,
            "model_fingerprint": fingerprint(identity),
            "max_new_tokens": settings.max_new_tokens,
            "request_options": request_options,
        }
        # One log a model and address: the requests in it name the model, but not who served it.
        self._log_path = log_directory / f"requests-{self.description['model_fingerprint'][:12]}.sqlite"

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, GeneratedReply]]:
        """See `Generator.generate`. A request that fails for good has finish_reason "failed: …"."""
        loop = asyncio.new_event_loop()
        run: _Run | None = None
        try:
            run = _Run(requests, self)
            loop.run_until_complete(run.start())
            for _ in requests:
                yield loop.run_until_complete(run.next_reply())
        finally:
            if run is not None:
                loop.run_until_complete(run.close())
            loop.close()

    def open(self) -> tuple[Endpoint, RequestLog]:
        """The client and its log. Call it inside the event loop that uses them."""
        log = RequestLog(self._log_path)
        return Endpoint(self._settings, self._api_key, log, Budget()), log

    def payload(self, request: Request) -> dict[str, Any]:
        """The body for one prompt: one user turn, greedy unless the request has a seed."""
        sampling = (
            {"temperature": 0.0} if request.seed is None else {"temperature": self._temperature, "seed": request.seed}
        )
        return self._settings.payload(request.prompt, {**sampling, **self._limit})

    @property
    def num_workers(self) -> int:
        """Requests in flight."""
        return self._settings.max_concurrency


class _Run:
    """One pass over the requests: workers that take the next one, and a queue of what they brought."""

    def __init__(self, requests: Sequence[Request], generator: EndpointGenerator) -> None:
        self._generator = generator
        self._todo: Iterator[tuple[int, Request]] = iter(enumerate(requests))
        self._num_workers = min(generator.num_workers, len(requests))
        self._workers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._done: asyncio.Queue[tuple[int, GeneratedReply] | Exception] = asyncio.Queue()
        self._endpoint, self._log = self._generator.open()
        self._workers = [asyncio.create_task(self._work()) for _ in range(self._num_workers)]

    async def _work(self) -> None:
        while (item := next(self._todo, None)) is not None:
            index, request = item
            try:
                reply = await self._endpoint.complete(self._generator.payload(request), 0)
                result = GeneratedReply(reply.content, reply.finish_reason)
            except RequestFailed as failed:
                result = GeneratedReply("", f"failed: {failed.reason}")
            except Exception as error:  # handed to the caller; the other workers start nothing new
                self._todo = iter(())
                self._done.put_nowait(error)
                return
            self._done.put_nowait((index, result))

    async def next_reply(self) -> tuple[int, GeneratedReply]:
        """The next reply. Raises what ended a worker, once the requests in flight had time to finish."""
        result = await self._done.get()
        if isinstance(result, Exception):
            await asyncio.wait(self._workers, timeout=_GRACE_S)
            raise result
        return result

    async def close(self) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        if self._workers:
            await self._endpoint.close()
            self._log.close()
