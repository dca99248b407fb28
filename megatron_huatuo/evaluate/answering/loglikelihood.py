"""How likely a model finds each option as the continuation of a question: scoring without generating.

Invariant: a likelihood depends on its context and continuation alone, whatever else is in the batch, and is in the request
log before it is used.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_huatuo.evaluate.answering.chat_model import ChatModel
from megatron_huatuo.evaluate.answering.chat_templates import AUTO_TEMPLATE
from megatron_huatuo.evaluate.generate import Continued, GenerationSettings, Likelihood
from megatron_huatuo.exams.likeliest_option import part_tokens
from megatron_huatuo.llm.request_log import Reply, RequestLog
from megatron_huatuo.log import get_logger, progress
from megatron_huatuo.storage.exam_results import directory_fingerprint
from megatron_huatuo.storage.manifest import fingerprint


class LoglikelihoodScorer:
    """Scores continuations with a Hugging Face directory."""

    def __init__(
        self, directory: Path, log_directory: Path, settings: GenerationSettings, *, trust_remote_code: bool = False
    ) -> None:
        self.chat = ChatModel(directory, settings, trust_remote_code=trust_remote_code)
        self._batch_size = settings.batch_size
        self._in_template = settings.template not in (AUTO_TEMPLATE, "none")
        self.description: dict[str, Any] = {
            "kind": "huggingface",
            "model": str(directory),
            "model_fingerprint": directory_fingerprint(directory),
            "template": settings.template if self._in_template else "none",
            "dtype": str(self.chat.model.dtype).removeprefix("torch."),
        }
        identity = {name: value for name, value in self.description.items() if name != "model"}
        self._identity = fingerprint([identity, "loglikelihood"])
        self._log_path = log_directory / f"requests-{self._identity[:12]}.sqlite"
        forward = inspect.signature(self.chat.model.forward).parameters
        self._keeps_logits = "logits_to_keep" in forward

    def score(self, items: Sequence[Continued]) -> list[list[Likelihood] | None]:
        """The likelihoods of each item's continuations; None where it is longer than the model's positions.

        Progress is shown. Raises: torch.OutOfMemoryError when a single continuation does not fit.
        """
        log = RequestLog(self._log_path)
        results: dict[Continued, list[Likelihood] | None] = {}
        unique = list(dict.fromkeys(items))
        try:
            with progress(total=len(unique), description="exam", unit="question") as bar:
                new = []
                for item in unique:
                    if (known := log.find(fingerprint([self._identity, *item]), 0)) is None:
                        new.append(item)
                    else:
                        results[item] = _from_text(known.content)
                        bar.update()
                for item, likelihoods in self._score_new(new):
                    key = fingerprint([self._identity, *item])
                    log.note_sent(key, 0, str(self.chat.directory))
                    log.note_reply(key, 0, Reply(json.dumps(likelihoods), "stop", 0, 0, False))
                    results[item] = likelihoods
                    bar.update()
        finally:
            log.close()
        return [results[item] for item in items]

    def _score_new(self, items: Sequence[Continued]) -> Iterator[tuple[Continued, list[Likelihood] | None]]:
        """Items in the order of completion, several in a batch, the longest first."""
        rows = [[self._encode(item.context, text) for text in item.continuations] for item in items]
        order = sorted(range(len(items)), key=lambda index: -max(len(a) + len(b) for a, b in rows[index]))
        while order:
            index = order[0]
            if max(len(a) + len(b) for a, b in rows[index]) > self.chat.max_positions:
                yield items[order.pop(0)], None
                continue
            batch = order[: self._batch_size]
            try:
                totals = self._run([row for index in batch for row in rows[index]])
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                self._batch_size = len(batch) // 2
                torch.cuda.empty_cache()
                get_logger(__name__).warning("out of GPU memory: going on with batches of %d", self._batch_size)
                continue
            del order[: len(batch)]
            for index in batch:
                texts = items[index].continuations
                yield (
                    items[index],
                    [
                        Likelihood(totals.pop(0), len(tokens), len(text))
                        for (_, tokens), text in zip(rows[index], texts, strict=True)
                    ],
                )

    def _encode(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """(tokens of the context, tokens of the continuation)."""
        if self._in_template:
            context = self.chat.render([{"role": "user", "content": context}])
            continuation = continuation.lstrip(" ")
        return part_tokens(self.chat.encode_text, context, continuation)

    @torch.inference_mode()
    def _run(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """Log-likelihoods of the second part of each row, given the first.

        Rows that differ in a single last token share one pass: the model sees the context once.
        """
        inputs: dict[tuple[int, ...], int] = {}
        places = []
        for context, continuation in rows:
            places.append(inputs.setdefault(tuple(context + continuation[:-1]), len(inputs)))
        longest = max(max(map(len, inputs)), 1)
        tokens = torch.full((len(inputs), longest), self.chat.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, row_tokens in enumerate(inputs):
            if row_tokens:
                tokens[row, longest - len(row_tokens) :] = torch.tensor(row_tokens, dtype=torch.long)
                mask[row, longest - len(row_tokens) :] = 1
        kept = min(longest, max(len(continuation) for _, continuation in rows))
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        extra: dict[str, Any] = {"logits_to_keep": kept} if self._keeps_logits else {}
        device = self.chat.device
        output = self.chat.model(
            input_ids=tokens.to(device), attention_mask=mask.to(device), position_ids=positions.to(device), **extra
        )
        logits = output.logits[:, -kept:]
        totals = []
        for place, (_, continuation) in zip(places, rows, strict=True):
            own = torch.log_softmax(logits[place, -len(continuation) :].float(), dim=-1)
            target = torch.tensor(continuation, device=own.device)
            totals.append(float(own.gather(-1, target[:, None]).sum()))
        return totals


def _from_text(content: str) -> list[Likelihood] | None:
    stored = json.loads(content)
    return None if stored is None else [Likelihood(*entry) for entry in stored]
