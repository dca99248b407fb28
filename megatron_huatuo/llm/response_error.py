"""What an error of an endpoint means: this reply is withheld, this try has failed, or no request can succeed.

Invariant: an error is judged by its own code, whatever the HTTP status around it. The vocabulary is that of the
providers: OpenAI, Azure, OpenRouter, DeepSeek, Zhipu, MiniMax, DashScope, Moonshot, Gemini, Anthropic, vLLM and SGLang.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import orjson

from megatron_huatuo.errors import EndpointError
from megatron_huatuo.llm.request_log import Reply

CONTENT_FILTER = "content_filter"
"""Finish reason of a request, or of a text, that the endpoint's content filter withholds"""

_FATAL_STATUS = {
    401: "the API key is not accepted",
    402: "payment is due",
    403: "access is denied",
    404: "no such model or path",
}
_RETRIED_STATUS = {408, 409, 425, 429}
# Names that error objects carry instead of a status, or beside another one.
_STATUS_BY_NAME = {
    400: "invalid_request_error invalid_argument badrequest bad_request failed_precondition context_length_exceeded",
    401: "invalid_api_key invalidapikey authentication_error unauthenticated unauthorized incorrect_api_key_error",
    402: "insufficient_quota insufficient_balance insufficient_balance_error billing_error arrearage creditserror 1113",
    403: "permission_denied permission_error access_denied accessdenied forbidden",
    404: "model_not_found modelnotfound not_found not_found_error notfounderror",
    429: "rate_limit_exceeded rate_limit_error ratelimit resource_exhausted too_many_requests throttling "
    "throttling.ratequota throttling.allocationquota requests_limit_exceeded 1302 1303 1305",
    500: "server_error api_error internal internal_error internal_server_error internalerror",
    503: "overloaded_error overloaded engine_overloaded_error unavailable service_unavailable model_overloaded",
    504: "deadline_exceeded timeout timeout_error",
}
_STATUS_OF = {name: status for status, names in _STATUS_BY_NAME.items() for name in names.split()}
# `base_resp` of MiniMax has numbers of its own.
_MINIMAX_STATUS = {1002: 429, 1039: 429, 1004: 401, 2049: 401, 1008: 402, 2013: 400}
_MINIMAX_FILTER = (1026, 1027)

_FILTER_CODE = re.compile(
    r"content_?(?:filter|policy|violation|inspection|moderation|safety|management)|responsibleai|data_?inspection|"
    r"sensitive|moderation|inappropriate|invalid_prompt|prohibited_content|^safety$|^1301$",
    re.IGNORECASE,
)
_FILTER_MESSAGE = re.compile(
    r"content exists risk|considered high risk|content (?:management )?policy|inappropriate content|"
    r"sensitive (?:content|words?|information)|(?:prompt|input|request|content|response)\s+(?:was|is|were|has been)\s+"
    r"(?:\w+\s+)?(?:flagged|filtered|blocked)|violates?\b.{0,30}\b(?:usage|content|safety)\b|requires moderation|"
    r"敏感|违规|不安全|内容(?:安全|审核)|风控",
    re.IGNORECASE,
)
_NEVER_FILTER = (401, 402, 404, 429)
_QUOTA = re.compile(
    r"insufficient[_ ](?:quota|balance|credits?|funds)|quota_exceeded|exceeded your current quota|billing|credit balance|"
    r"requires more credits|arrearage|account_?overdue|out of credits|余额不足|欠费",
    re.IGNORECASE,
)
_REFUSED_PARAMETER = re.compile(
    r"unsupported|not support|unrecognized|unrecognised|unknown|unexpected|not permitted|not allowed|deprecated|"
    r"only the default|extra inputs",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(
    r"context (?:length|window)|too (?:long|large|many tokens)|exceed(?:s|ed)? (?:the|model)\b|maximum (?:length|number of tokens)|input length|"
    r"max_tokens must be at least 1|reduce the length|`?inputs`? (?:must have|tokens)|太长|过长|超长|超出|超过",
    re.IGNORECASE,
)
_SECONDS_IN = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_ONE_DURATION = r"(\d+(?:\.\d+)?)\s?(ms|[hms])(?:ours?|inutes?|econds?|ecs?|ins?)?(?![a-z])"
_DURATION = re.compile(_ONE_DURATION, re.IGNORECASE)
_RETRY_DELAY = re.compile(
    rf"""(?:retry[ _-]?delay"?\s*:\s*"?|(?:retry|try again) (?:in|after) )(?:{_ONE_DURATION}\s?)+""", re.IGNORECASE
)
_MAX_SHOWN_CHARACTERS = 300


class Failure(Exception):
    """One failed try. retried: whether another try makes sense; wait_s: what the endpoint asked for; paid: perhaps.

    tokens: (prompt, completion) that the endpoint counted for it, if any: they are paid. about_prompt: it is this prompt's
    fault and says nothing about the endpoint.
    """

    def __init__(
        self,
        reason: str,
        *,
        retried: bool,
        wait_s: float | None = None,
        paid: bool = False,
        detail: str = "",
        tokens: tuple[int, int] | None = None,
        about_prompt: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason, self.retried, self.wait_s, self.tokens = reason, retried, wait_s, tokens
        self.paid = paid or tokens is not None
        self.about_prompt = about_prompt
        self.full_reason = f"{reason}: {detail}" if detail else reason


class Asked(NamedTuple):
    """What a body is the reply to.

    parameters: names in the request besides the model and the messages; redact: takes the API key out of an error.
    """

    base_url: str
    parameters: tuple[str, ...]
    max_retry_after_s: float
    redact: Callable[[str], str]


def parse_body(body: bytes) -> Any:
    """The JSON value of a body, or None. Halves of characters (\\ud83d) are left to the standard library."""
    for loads in (orjson.loads, json.loads):
        try:
            return loads(body)
        except (ValueError, RecursionError):
            continue
    return None


def withheld(counts: tuple[int, int] | None) -> Reply:
    return Reply("", CONTENT_FILTER, *(counts or (0, 0)), True)


class _Error(NamedTuple):
    """An error object, flattened. status: its own, if it has one; codes: its codes, types and names in lower case."""

    status: int | None
    codes: tuple[str, ...]
    message: str
    parameter: str | None


def find_error(content: Any) -> Any:
    """The error that a body of any layout carries, or None."""
    if isinstance(content, list):
        return find_error(content[0]) if content else None
    if not isinstance(content, dict):
        return None
    choices = content.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    for error in (content.get("error"), first.get("error"), content.get("errors")):
        if error:
            return error
    base = content.get("base_resp")
    if isinstance(base, dict) and base.get("status_code"):
        return {"base_resp": base["status_code"], "message": base.get("status_msg")}
    is_error = content.get("object") == "error" or content.get("type") == "error"
    if is_error or ("choices" not in content and {"detail", "message", "msg", "error_msg"} & content.keys()):
        return content
    return None


def _flatten(error: Any, redact: Callable[[str], str]) -> _Error:
    """What an error says, in whatever layout: an object, a list of objects, a text, JSON within a text."""
    codes: list[str] = []
    messages: list[str] = []
    status: int | None = None
    parameter: str | None = None
    waiting, depth = [error], 0
    while waiting and depth < 20:
        item, depth = waiting.pop(0), depth + 1
        if isinstance(item, list):
            waiting += item[:3]
        elif isinstance(item, str):
            nested = parse_body(item.encode("utf-8", "replace")) if item.lstrip()[:1] in ("{", "[") else None
            if isinstance(nested, dict | list):
                waiting.append(nested)
            else:
                messages.append(redact(item))
        elif isinstance(item, dict):
            for name in ("code", "type", "status", "http_code", "status_code", "error_code", "reason", "base_resp"):
                value = item.get(name)
                if isinstance(value, str | int) and not isinstance(value, bool):
                    codes.append(redact(str(value)).strip().lower())
            minimax = item.get("base_resp")
            if isinstance(minimax, int):
                status = _MINIMAX_STATUS.get(minimax, 500)
                codes += [CONTENT_FILTER] if minimax in _MINIMAX_FILTER else []
            parameter = item["param"] if isinstance(item.get("param"), str) else parameter
            metadata = item.get("metadata")
            if isinstance(metadata, dict) and metadata.get("flagged_input"):
                codes.append(CONTENT_FILTER)
            waiting += [
                item[name]
                for name in ("message", "msg", "detail", "error_msg", "error", "innererror", "details")
                if item.get(name)
            ]
    numbers = [int(code) for code in codes if re.fullmatch(r"[45]\d\d", code)]
    named = [_STATUS_OF[code] for code in codes if code in _STATUS_OF]
    return _Error(status or next(iter(numbers + named), None), tuple(codes), " ".join(messages), parameter)


def judge_error(
    http_status: int, headers: Mapping[str, str], raw: Any, body: bytes, asked: Asked, counts: tuple[int, int] | None
) -> Reply:
    """What an error means. Returns a reply only where a content filter withholds one.

    raw: the error object, None where the body holds none: a page of some machine on the way, whose words mean nothing.
    """
    error = _flatten(body.decode("utf-8", "replace") if raw is None else raw, asked.redact)
    in_reply = http_status == 200
    status = (error.status or 500) if in_reply else http_status
    code = error.status or next(iter(error.codes), "of unknown kind")
    where = f"HTTP 200 with error {code}" if in_reply else f"HTTP {status}"
    text = (error.message or " ".join(error.codes))[:_MAX_SHOWN_CHARACTERS]
    everything = f"{json.dumps(raw, ensure_ascii=False, default=str)} {error.message}"
    if (
        raw is not None
        and status not in _NEVER_FILTER
        and (any(_FILTER_CODE.search(name) for name in error.codes) or _FILTER_MESSAGE.search(error.message))
    ):
        return withheld(counts)
    wait_s = _retry_after_s(headers, everything if status in (429, 503) else "")
    # Gemini calls the limit of a minute a quota too, and says how long to wait.
    is_minute = wait_s is not None and "resource_exhausted" in error.codes
    if (
        raw is not None
        and _QUOTA.search(everything)
        and not is_minute
        and (status < 500 or "insufficient" in everything.lower())
    ):
        raise EndpointError(
            f"quota is used up: {where}: {text} ({asked.base_url}). "
            "Renew it and run again: what is paid is not paid twice."
        )
    if status in _FATAL_STATUS:
        raise EndpointError(
            f"endpoint refuses: {where}, {_FATAL_STATUS[status]}: {text} ({asked.base_url}). "
            "Check --api-key-env, --model and --base-url."
        )
    if status in (400, 422) and (name := _refused_parameter(error, asked.parameters)):
        raise EndpointError(
            f"endpoint refuses the parameter {name!r} of every request: {where}: {text} ({asked.base_url}). {_way_out(name)}"
        )
    if wait_s is not None and wait_s > asked.max_retry_after_s:
        raise EndpointError(
            f"endpoint asks to wait {wait_s:.0f} s: more than max_retry_after_s={asked.max_retry_after_s:.0f} "
            f"({where}, {asked.base_url}). Run again later: what is paid is not paid twice."
        )
    retried = status in _RETRIED_STATUS or status >= 500
    about_prompt = status in (400, 413, 422) and _TOO_LONG.search(error.message) is not None
    raise Failure(where, retried=retried, wait_s=wait_s, detail=text, tokens=counts, about_prompt=about_prompt)


def _refused_parameter(error: _Error, parameters: tuple[str, ...]) -> str | None:
    """The parameter that the endpoint does not take from anybody, whatever the prompt; None for other errors."""
    is_refused = _REFUSED_PARAMETER.search(f"{error.message} {' '.join(error.codes)}")
    if not is_refused:
        return None
    names = [name for name in parameters if re.search(rf"\b{re.escape(name)}\b", error.message)]
    return error.parameter if error.parameter is not None and error.parameter in parameters else next(iter(names), None)


def _way_out(parameter: str) -> str:
    if parameter == "max_tokens":
        return "Use --token-limit-key max_completion_tokens."
    return (
        f"Leave it out with the line `{parameter}: null` in a file of --request-options, or give another value there."
    )


def _retry_after_s(headers: Mapping[str, str], error: str) -> float | None:
    """Seconds that the endpoint asks to wait, in a header (a number, or a date) or in the error; 0 and nonsense are left to back-off."""
    wishes = (
        _number(headers.get("retry-after-ms"), 0.001),
        _number(headers.get("retry-after")),
        _seconds_until(headers.get("retry-after")),
        _seconds_in(error),
    )
    return next((wait_s for wait_s in wishes if wait_s is not None and wait_s > 0), None)


def _number(value: str | None, unit_s: float = 1.0) -> float | None:
    try:
        seconds = float(value or "") * unit_s
    except ValueError:
        return None
    return seconds if seconds == seconds else None


def _seconds_until(date: str | None) -> float | None:
    """Until a date of HTTP, such as "Wed, 21 Oct 2026 07:28:00 GMT"."""
    try:
        return (parsedate_to_datetime(date or "") - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None


def _seconds_in(error: str) -> float | None:
    """What "Please try again in 1m30.5s" or "120ms" ask for."""
    found = _RETRY_DELAY.search(error)
    if found is None:
        return None
    return sum(float(value) * _SECONDS_IN[unit.lower()] for value, unit in _DURATION.findall(found[0]))
