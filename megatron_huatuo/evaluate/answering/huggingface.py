"""The exam's generator on a Hugging Face directory: batches of prompts, resumable, on CPU or GPU.

Invariant: a reply depends on its prompt and its seed alone: left-padded, and sampled with noise of its own, whatever else is in
the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from megatron_huatuo.evaluate.answering.chat_model import ChatModel, SeededNoise
from megatron_huatuo.evaluate.generate import GeneratedReply, GenerationSettings, Request
from megatron_huatuo.llm.request_log import Reply, RequestLog
from megatron_huatuo.log import get_logger
from megatron_huatuo.storage.exam_results import directory_fingerprint
from megatron_huatuo.storage.manifest import fingerprint


class HuggingFaceGenerator:
    """Answers prompts from a directory, longest first, in batches."""

    def __init__(
        self, directory: Path, log_directory: Path, settings: GenerationSettings, *, trust_remote_code: bool = False
    ) -> None:
        self.chat = ChatModel(directory, settings, trust_remote_code=trust_remote_code)
        self._batch_size = settings.batch_size
        self._temperature = settings.temperature
        self.description = {
            "kind": "huggingface",
            "model": str(directory),
            "model_fingerprint": directory_fingerprint(directory),
            "max_new_tokens": settings.max_new_tokens,
            "template": settings.template,
            "dtype": str(self.chat.model.dtype).removeprefix("torch."),
        }
        identity = {name: value for name, value in self.description.items() if name != "model"}
        self._identity = fingerprint(identity)
        self._log_path = log_directory / f"requests-{self._identity[:12]}.sqlite"

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, GeneratedReply]]:
        """See `Generator.generate`."""
        log = RequestLog(self._log_path)
        try:
            keys = [self._key(request) for request in requests]
            missing = []
            for index, key in enumerate(keys):
                if (known := log.find(key, 0)) is not None:
                    yield index, GeneratedReply(known.content, known.finish_reason)
                else:
                    missing.append(index)
            for index, reply, prompt_tokens in self._generate_new([requests[index] for index in missing]):
                key = keys[missing[index]]
                log.note_sent(key, 0, str(self.chat.directory))
                log.note_reply(key, 0, Reply(reply.text, reply.finish_reason, prompt_tokens, 0, False))
                yield missing[index], reply
        finally:
            log.close()

    def _key(self, request: Request) -> str:
        sampling = [] if request.seed is None else [self._temperature, request.seed]
        return fingerprint([self._identity, request.prompt, *sampling])

    def _generate_new(self, requests: Sequence[Request]) -> Iterator[tuple[int, GeneratedReply, int]]:
        encoded = [self.chat.encode([{"role": "user", "content": request.prompt}]) for request in requests]
        # Longest first: a memory error comes at once, and the time left is overestimated, never underestimated.
        order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))
        while order:
            batch = self._next_batch(order, encoded)
            if self.chat.room(len(encoded[batch[0]])) < 1:
                replies = [GeneratedReply("", "prompt too long")]
            else:
                replies = self._answer(encoded, [request.seed for request in requests], batch)
            for index, reply in zip(batch, replies, strict=False):
                yield index, reply, len(encoded[index])
            del order[: len(replies)]

    def _next_batch(self, order: list[int], encoded: list[list[int]]) -> list[int]:
        """The next prompts; one that leaves less than `max_new_tokens` of room goes alone, so that no other is cut."""
        alone = self.chat.room(len(encoded[order[0]])) < self.chat.settings.max_new_tokens
        return order[: 1 if alone else self._batch_size]

    def _answer(self, encoded: list[list[int]], seeds: list[int | None], batch: list[int]) -> list[GeneratedReply]:
        """Replies to the batch, or to its first part when memory does not suffice for all."""
        while True:
            try:
                noise = SeededNoise([seeds[index] for index in batch], self._temperature)
                return self.chat.answer([encoded[index] for index in batch], noise=noise if noise.is_needed else None)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                batch = batch[: len(batch) // 2]
                self._batch_size = len(batch)
            torch.cuda.empty_cache()
            get_logger(__name__).warning("out of GPU memory: going on with batches of %d", self._batch_size)
