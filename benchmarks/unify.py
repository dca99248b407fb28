"""Unification against an endpoint on this machine that answers at once: what our own work costs a request."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import interleave, peak_mib, rate_record, surroundings
from benchmarks.settings import UnifyBenchmark
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.llm.api_key import ApiKey
from megatron_huatuo.llm.endpoint_settings import EndpointSettings
from megatron_huatuo.llm.request import Client
from megatron_huatuo.storage.jsonl import read_jsonl, write_jsonl
from megatron_huatuo.storage.records import parse_document
from megatron_huatuo.unify import unify
from megatron_huatuo.unify.writers.writer_prompts import load_prompts
from megatron_huatuo.unify.writers.writer_styles import QUESTION_ANSWER, load_styles

_CONCURRENCY = 64
_PACKAGES = ("openai", "aiohttp", "datatrove")
_QUESTION = "高血压患者在日常生活中应当注意哪些方面？"
_ENDPOINT = """
import json, sys
from aiohttp import web
question = sys.argv[1]
async def answer(request):
    prompt = (await request.json())["messages"][0]["content"]
    text = prompt.split("【内容】")[1].split("【问题】")[0].strip().split("\\n", 1)[1] if "【问题】" in prompt else question
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 400, "completion_tokens": 100}})
application = web.Application()
application.router.add_post("/v1/chat/completions", answer)
web.run_app(application, host="127.0.0.1", port=0, access_log=None,
            print=lambda *words: print(*words, flush=True))
"""


def run(settings: UnifyBenchmark) -> list[dict[str, Any]]:
    """All records of the unify benchmark."""
    if settings.documents < 10:
        raise ConfigError(f"too little to measure: got {settings.documents} documents, need at least 10.")
    with tempfile.TemporaryDirectory() as name, _endpoint() as base_url:
        directory = Path(name)
        path = directory / "documents.jsonl"
        _write_documents(path, settings.documents)
        outputs = (directory / f"out-{number}" for number in range(settings.repeats + 1))
        timings = interleave(
            {
                "ours": lambda: unify([path], next(outputs), backend="openai", base_url=base_url, model="m",
                                      max_concurrency=_CONCURRENCY),
                "peer": lambda: asyncio.run(_ask_all(path, base_url)),
            },
            settings.repeats,
        )  # fmt: skip
        rate = rate_record(
            "unify: requests to an endpoint that answers at once",
            work=2 * settings.documents,
            unit="requests/s",
            ours=timings["ours"],
            peer=timings["peer"],
            peer_name="openai.AsyncOpenAI in a bare loop: no log, no gates, no output",
            packages=_PACKAGES,
        )
        alone = _request_records(base_url, settings.documents, settings.repeats)
        return [rate, *alone, _memory_record(directory, settings.documents, base_url)]


@contextlib.contextmanager
def _endpoint() -> Iterator[str]:
    """A server in a process of its own; gives its address."""
    process = subprocess.Popen([sys.executable, "-c", _ENDPOINT, _QUESTION], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = None
        while address is None:
            if not (line := process.stdout.readline()):
                raise ConfigError("the endpoint of the benchmark did not start: see the error above.")
            address = re.search(r"http://\S+", line)
        yield f"{address[0]}/v1"
    finally:
        process.terminate()
        process.wait()


def _write_documents(path: Path, number: int) -> None:
    """Distinct Chinese passages."""
    sentence = "第{}组患者共{}例，常见症状为乏力与不适，治疗时应遵医嘱，每日服药{}次，每次{}毫克，并定期复查血压。"
    write_jsonl(
        path,
        (
            {
                "id": f"d{index}", "source": "web", "language": "zh", "title": "高血压",
                "text": "".join(sentence.format(index * 31 % 9973, index + part, part + 1, index % 90 + part) for part in range(5)),
            }
            for index in range(number)
        ),
    )  # fmt: skip


async def _ask_all(path: Path, base_url: str) -> None:
    """The same requests, as short as the client allows."""
    from openai import AsyncOpenAI, DefaultAioHttpClient

    prompt = load_styles(load_prompts())[QUESTION_ANSWER]["zh"]
    slots = asyncio.Semaphore(_CONCURRENCY)
    async with AsyncOpenAI(base_url=base_url, api_key="none", http_client=DefaultAioHttpClient()) as client:

        async def ask(message: str, most: int) -> str:
            async with slots:
                reply = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": message}], temperature=0.7, max_tokens=most
                )
            return reply.choices[0].message.content or ""

        async def rewrite(record: dict[str, Any]) -> None:
            document = parse_document(record, "")
            question = await ask(prompt.ask_question(document), 512)
            await ask(prompt.ask_answer(document, question), 2048)

        await asyncio.gather(*(rewrite(line.record) for line in read_jsonl(path)))


def _request_records(base_url: str, requests: int, repeats: int) -> list[dict[str, Any]]:
    """What a request costs by itself, through `llm` and through the openai client over each of its transports."""
    import openai

    async def ask_ours() -> None:
        client = Client(EndpointSettings(base_url, "m"), ApiKey(None))
        try:
            await _ask_many(client.ask, requests)
        finally:
            await client.close()

    async def ask_peer(transport: type[Any]) -> None:
        async with openai.AsyncOpenAI(
            base_url=base_url, api_key="none", http_client=transport(), max_retries=0, timeout=600
        ) as client:
            await _ask_many(lambda payload: client.chat.completions.create(**payload), requests)

    peers = {
        "the openai client over aiohttp": openai.DefaultAioHttpClient,
        "the openai client over httpx": openai.DefaultAsyncHttpxClient,
    }
    candidates = {"ours": lambda: asyncio.run(ask_ours())}
    for name, transport in peers.items():
        candidates[name] = functools.partial(lambda kind: asyncio.run(ask_peer(kind)), transport)
    timings = interleave(candidates, repeats)
    return [
        rate_record(
            f"unify: a request by itself, against {name}",
            work=requests,
            unit="requests/s",
            ours=timings["ours"],
            peer=timings[name],
            peer_name=f"{name}, no retries",
            packages=_PACKAGES,
        )
        for name in peers
    ]


async def _ask_many(ask: Callable[[dict[str, Any]], Awaitable[object]], requests: int) -> None:
    slots = asyncio.Semaphore(_CONCURRENCY)

    async def one(number: int) -> None:
        message = {"role": "user", "content": _QUESTION * 20 + str(number)}
        async with slots:
            await ask({"model": "m", "messages": [message], "temperature": 0.7, "max_tokens": 512})

    await asyncio.gather(*(one(number) for number in range(requests)))


def _memory_record(directory: Path, documents: int, base_url: str) -> dict[str, Any]:
    """Peak memory of one process over a tenth of the documents and over all of them."""
    peaks = []
    for number in (documents // 10, documents):
        path = directory / f"memory-{number}.jsonl"
        _write_documents(path, number)
        code = (
            "import sys; from megatron_huatuo.unify import unify; "
            "unify([sys.argv[1]], sys.argv[2], backend='openai', base_url=sys.argv[3], model='m')"
        )
        peaks.append(peak_mib(code, str(path), str(directory / f"memory-{number}"), base_url))
    return {
        "name": "unify: peak memory, 10 times the documents",
        "ours": peaks[1],
        "peer": peaks[0],
        "peer_name": "the same run over a tenth of the documents",
        "ratio": peaks[1] / peaks[0],
        "unit": "MiB (smaller is better)",
        "runs": {"ours": peaks[1:], "peer": peaks[:1]},
        **surroundings(_PACKAGES),
    }
