"""What the body of an HTTP reply says: a completion, a refusal of this request, a failed try, or the end of the run.

Invariants: an error is judged by its own code, whatever the HTTP status around it; only a text whose finish reason says
that it is whole is a reply; the tokens of a reply that cannot be used are handed on, since they are paid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from megatron_huatuo.llm.request_log import Reply
from megatron_huatuo.llm.response_error import (
    CONTENT_FILTER,
    Asked,
    Failure,
    find_error,
    judge_error,
    parse_body,
    withheld,
)

REFUSAL = "refusal"
"""Finish reason where the model declines in a field of its own instead of a text"""

_FINISH_REASONS = {
    "stop": "stop eos eos_token eos_id eod end end_turn end_of_turn end_of_sequence stop_sequence stop_token stop_string "
    "complete completed finish finished normal finish_reason_stop",
    "length": "length max_tokens max_length max_output_tokens max_new_tokens model_length token_limit truncated "
    "model_context_window_exceeded context_length_exceeded finish_reason_max_tokens",
    CONTENT_FILTER: "content_filter content_filtered content_policy sensitive safety image_safety recitation blocklist "
    "prohibited_content spii model_armor error_toxic moderation refusal",
    "tool_calls": "tool_calls tool_call tool_use function_call",
}
_CANONICAL = {synonym: name for name, synonyms in _FINISH_REASONS.items() for synonym in synonyms.split()}
_THINKING_PARTS = ("thinking", "redacted_thinking", "reasoning", "reasoning_content", "thought")

_MOST_READ, _MAX_SHOWN_CHARACTERS = 4096, 80  # of a body that is no completion
_MOST_TOKENS = 1 << 53  # more than any model reads or writes: garbage, and too large for the request log


def read_response(status: int, headers: Mapping[str, str], body: bytes, asked: Asked) -> Reply:
    """The reply in a body. A content filter gives a reply without text, with the finish reason CONTENT_FILTER.

    headers: case-insensitive. Raises: Failure for this try; EndpointError when no request can succeed.
    """
    content = parse_body(body)
    counts = _usage(content)
    if (error := find_error(content)) is not None or status != 200:
        return judge_error(status, headers, error, body, asked, counts)
    return _read_completion(content, counts, asked.redact, body)


def _usage(content: Any) -> tuple[int, int] | None:
    """(prompt, completion) tokens as the endpoint counted them, or None."""
    usage = content.get("usage") if isinstance(content, dict) else None
    if not isinstance(usage, dict):
        return None
    counts = []
    for names in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
        value = next((usage[name] for name in names if usage.get(name) is not None), None)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MOST_TOKENS:
            return None
        counts.append(int(value))
    return counts[0], counts[1]


def _read_completion(content: Any, counts: tuple[int, int] | None, redact: Callable[[str], str], body: bytes) -> Reply:
    """The completion in a body without an error."""

    def failed(reason: str, detail: str = "") -> Failure:
        # What was paid for and cannot be read would not be read better at a second try.
        return Failure(reason, retried=counts is None, detail=detail, tokens=counts)

    choices = content.get("choices", ...) if isinstance(content, dict) else ...
    if choices is None or choices == []:
        if _is_blocked(content):
            return withheld(counts)
        raise Failure("no choices", retried=True, tokens=counts)
    if not isinstance(choices, list) or not isinstance(choices[0], dict):
        start = redact(body[:_MOST_READ].decode("utf-8", "replace"))
        raise failed("garbage instead of a completion", " ".join(start.split())[:_MAX_SHOWN_CHARACTERS])
    choice = choices[0]
    raw = choice.get("finish_reason")
    raw = raw.get("type") if isinstance(raw, dict) else raw
    finish_reason = _CANONICAL.get(str(raw).strip().lower())
    if finish_reason is None:
        shown = "none is given" if raw is None else redact(str(raw))[:40]
        raise Failure("unfinished reply", retried=True, detail=f"finish reason {shown}", tokens=counts)
    if finish_reason == CONTENT_FILTER:
        return withheld(counts)
    message = choice.get("message", ...)
    raw_text = (
        choice.get("text", ...) if message is ... else message.get("content") if isinstance(message, dict) else ...
    )
    text = _text(raw_text)
    if text is None:
        raise failed("garbage instead of a completion", redact(_kind(raw_text)))
    if not text and isinstance(message, dict) and message.get("refusal"):
        finish_reason = REFUSAL
    prompt_tokens, completion_tokens = counts or (0, 0)
    return Reply(_whole_characters(text), finish_reason, prompt_tokens, completion_tokens, counts is not None)


def _is_blocked(content: Mapping[str, Any]) -> bool:
    """Whether a reply without choices says that the prompt was filtered."""
    feedback = content.get("promptFeedback") or content.get("prompt_feedback")
    blocked = isinstance(feedback, dict) and (feedback.get("blockReason") or feedback.get("block_reason"))
    return bool(blocked or content.get("input_sensitive") or content.get("output_sensitive"))


def _text(content: Any) -> str | None:
    """The text of a message, thinking parts left out; "" for none; None for what is no text."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, dict) and part.get("type") in _THINKING_PARTS:
            continue
        text = (
            part.get("text") if isinstance(part, dict) and part.get("type") in (None, "text", "output_text") else part
        )
        if isinstance(text, dict):
            text = text.get("value")
        if not isinstance(text, str):
            return None
        texts.append(text)
    return "".join(texts)


def _kind(content: Any) -> str:
    """What a content that cannot be read is, for the report."""
    if isinstance(content, list):
        kinds = {str(part.get("type")) if isinstance(part, dict) else type(part).__name__ for part in content}
        return f"parts of type {', '.join(sorted(kinds))}"
    return "no message" if content is ... else f"content is {type(content).__name__}"


def _whole_characters(text: str) -> str:
    """Halves of characters, which no UTF-8 file can hold, become U+FFFD: the gates refuse it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
