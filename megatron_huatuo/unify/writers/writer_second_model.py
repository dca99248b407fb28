"""The optional second model: it judges every finished pair, and what it does not find right is refused.

Invariant: only a clear yes lets a pair pass; a verdict that cannot be read is refused under a reason of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from megatron_huatuo.llm.request_log import Reply
from megatron_huatuo.llm.retries import Endpoint, RequestFailed
from megatron_huatuo.llm.thoughts import peel_reply
from megatron_huatuo.storage.records import Document
from megatron_huatuo.unify.writers.writer import ENDPOINT_FAILED, Spent
from megatron_huatuo.unify.writers.writer_prompts import Prompt
from megatron_huatuo.unify.writers.writer_settings import SamplingSettings

_NO = "second_model"
_UNREADABLE = "second_model_unreadable"
_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
_WORDS = {"yes": "yes", "no": "no", "是": "yes", "否": "no"}
_MAX_SHOWN_CHARACTERS = 120


class SecondModel:
    """Asks one model for verdicts, through the same request log and budget as the first."""

    def __init__(
        self, endpoint: Endpoint, prompts: Mapping[str, Prompt], sampling: SamplingSettings, max_tokens: int
    ) -> None:
        self._endpoint, self._prompts = endpoint, prompts
        self._parameters = sampling.parameters(max_tokens, temperature=0.0)

    async def refuse(
        self, document: Document | None, question: str, answer: str, language: str, spent: Spent
    ) -> str | None:
        """The reason why a pair is refused, or None. Raises EndpointError or BudgetReached."""
        message = self._prompts[language].ask_check(document, question, answer)
        payload = self._endpoint.settings.payload(message, self._parameters)
        try:
            reply = await self._endpoint.complete(payload, 0)
        except RequestFailed as failed:
            return f"{ENDPOINT_FAILED}: {failed.reason}"
        note_spent(spent, self._endpoint.settings.model, reply)
        verdict = read_verdict(reply.content)
        if verdict is None or reply.finish_reason == "length":
            return f"{_UNREADABLE}: {reply.content[:_MAX_SHOWN_CHARACTERS] or 'empty reply'}"
        return None if verdict[0] == "yes" else f"{_NO}: {verdict[1] or 'no reason given'}"


def note_spent(spent: Spent, model: str, reply: Reply) -> None:
    """Add the tokens of a reply to what its document took."""
    spent[model, "prompt"] += reply.prompt_tokens
    spent[model, "completion"] += reply.completion_tokens


def read_verdict(text: str) -> tuple[str, str] | None:
    """("yes" or "no", reason or "") of a reply: one word, or a JSON object with `verdict` and perhaps `reason`.

    >>> read_verdict("Yes."), read_verdict('{"verdict": "no", "reason": "other dose"}'), read_verdict("yes, but no")
    (('yes', ''), ('no', 'other dose'), None)
    """
    text, problem = peel_reply(text)
    if problem:
        return None
    if fenced := _FENCE.fullmatch(text):
        text = fenced[1]
    if word := _WORDS.get(text.rstrip(".。!！").lower()):
        return word, ""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not {"verdict"} <= content.keys() <= {"verdict", "reason"}:
        return None
    verdict, reason = content["verdict"], content.get("reason") or ""
    if not isinstance(verdict, str) or not isinstance(reason, str):
        return None
    word = _WORDS.get(verdict.lower())
    return (word, " ".join(reason.split())) if word else None
