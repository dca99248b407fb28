"""What the body of a reply means: bodies in the layouts of servers and providers, and any others."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_huatuo.errors import EndpointError
from megatron_huatuo.llm.request_log import Reply
from megatron_huatuo.llm.response import REFUSAL, read_response
from megatron_huatuo.llm.response_error import CONTENT_FILTER, Asked, Failure

ASKED = Asked("http://host/v1", ("temperature", "max_tokens"), 600.0, lambda text: text)
USAGE = {"prompt_tokens": 300, "completion_tokens": 80}


def completion(content: Any = "好", finish_reason: Any = "stop", **more: Any) -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": {"content": content}}],
        "usage": USAGE,
        **more,
    }


def read(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_response(status, headers or {}, raw, ASKED)


REPLIES = {
    "text": (completion("好"), "好", "stop"),
    "empty": (completion(""), "", "stop"),
    "null": (completion(None), "", "stop"),
    "eos": (completion("好", "eos"), "好", "stop"),
    "eos_token": (completion("好", "eos_token"), "好", "stop"),
    "end_turn": (completion("好", "end_turn"), "好", "stop"),
    "STOP": (completion("好", "STOP"), "好", "stop"),
    "SGLang's object": (completion("好", {"type": "stop", "matched": 151645}), "好", "stop"),
    "length": (completion("好", "length"), "好", "length"),
    "MAX_TOKENS": (completion("好", "MAX_TOKENS"), "好", "length"),
    "model_length": (completion("好", "model_length"), "好", "length"),
    "content_filter": (completion("好", "content_filter"), "", CONTENT_FILTER),
    "sensitive": (completion("好", "sensitive"), "", CONTENT_FILTER),
    "SAFETY": (completion("好", "SAFETY"), "", CONTENT_FILTER),
    "RECITATION": (completion("好", "RECITATION"), "", CONTENT_FILTER),
    "blocked prompt": ({"choices": [], "promptFeedback": {"blockReason": "SAFETY"}}, "", CONTENT_FILTER),
    "sensitive input": ({"choices": None, "input_sensitive": True}, "", CONTENT_FILTER),
    "parts": (completion([{"type": "text", "text": "好"}, {"type": "text", "text": "的"}]), "好的", "stop"),
    "parts with thoughts": (
        completion([{"type": "thinking", "thinking": [{"type": "text", "text": "想"}]}, {"type": "text", "text": "好"}]), "好", "stop"),
    "output_text": (completion([{"type": "output_text", "text": "好", "annotations": []}]), "好", "stop"),
    "one part": (completion({"type": "text", "text": "好"}), "好", "stop"),
    "part with a value": (completion([{"type": "text", "text": {"value": "好"}}]), "好", "stop"),
    "plain parts": (completion(["好", "的"]), "好的", "stop"),
    "thoughts alone": (completion([{"type": "thinking", "thinking": "想"}]), "", "stop"),
    "reasoning beside": (
        {"choices": [{"finish_reason": "stop", "message": {"content": "好", "reasoning_content": "想"}}]}, "好", "stop"),
    "refusal beside": (
        {"choices": [{"finish_reason": "stop", "message": {"content": None, "refusal": "I can't."}}]}, "", REFUSAL),
    "tool": (completion(None, "tool_calls"), "", "tool_calls"),
    "text in the choice": ({"choices": [{"finish_reason": "stop", "text": "好"}]}, "好", "stop"),
    "error is null": (completion("好", error=None), "好", "stop"),
    "byte-order mark": (b"\xef\xbb\xbf" + json.dumps(completion("好")).encode(), "好", "stop"),
    "half a character": (completion("好\ud83d"), "好\ufffd", "stop"),
}  # fmt: skip


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_is_read_with_its_finish_reason_in_one_word(name):
    body, content, finish_reason = REPLIES[name]
    reply = read(body)
    assert (reply.content, reply.finish_reason) == (content, finish_reason)


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 2}, (3, 2, True)),
        ({"input_tokens": 3, "output_tokens": 2}, (3, 2, True)),
        ({"prompt_tokens": 3.0, "completion_tokens": 2.0, "total_tokens": 5}, (3, 2, True)),
        ({"prompt_tokens": 3}, (0, 0, False)),
        ({"prompt_tokens": -1, "completion_tokens": 2}, (0, 0, False)),
        ({"prompt_tokens": True, "completion_tokens": 2}, (0, 0, False)),
        ({"prompt_tokens": 10**30, "completion_tokens": 2}, (0, 0, False)),
        ({"prompt_tokens": "3", "completion_tokens": "2"}, (0, 0, False)),
        (None, (0, 0, False)),
        ([], (0, 0, False)),
    ],
)
def test_tokens_are_those_that_the_endpoint_counted_or_none(usage, counts):
    reply = read(completion(usage=usage))
    assert (reply.prompt_tokens, reply.completion_tokens, reply.counted) == counts


FAILURES = {
    # body, status, reason, whether it is tried again
    "no choices": ({"choices": [], "usage": USAGE}, 200, "no choices", True),
    "null choices": ({"id": None, "choices": None, "usage": None}, 200, "no choices", True),
    "finish reason error": (completion("好", "error"), 200, "unfinished reply: finish reason error", True),
    "insufficient_system_resource": (completion("好", "insufficient_system_resource"), 200, "unfinished reply", True),
    "network_error": (completion("好", "network_error"), 200, "unfinished reply", True),
    "abort": (completion("好", "abort"), 200, "unfinished reply", True),
    "SGLang's abort": (completion("好", {"type": "abort", "message": "x"}), 200, "unfinished reply: finish reason abort", True),
    "null finish reason": (completion("好", None), 200, "unfinished reply: finish reason none is given", True),
    "an unknown part": (completion([{"type": "image_url"}]), 200, "garbage instead of a completion: parts of type image_url", False),
    "a number": (completion(5), 200, "garbage instead of a completion: content is int", False),
    "no message": ({"choices": [{"finish_reason": "stop"}]}, 200, "garbage instead of a completion: no message", True),
    "no JSON": (b"<html>\n Login", 200, "garbage instead of a completion: <html> Login", True),
    "empty body": (b"", 200, "garbage instead of a completion", True),
    "error beside the choice": (completion("好", error={"code": 502, "message": "provider"}), 200, "HTTP 200 with error 502: provider", True),
    "error in the choice": (
        {"choices": [{"finish_reason": "error", "error": {"code": 502, "message": "cut"}, "message": {"content": "好"}}]},
        200, "HTTP 200 with error 502: cut", True),
    "429 in a reply": ({"error": {"code": "429", "message": "slow down"}}, 200, "HTTP 200 with error 429: slow down", True),
    "rate limit by name": ({"error": {"type": "rate_limit_error", "message": "slow"}}, 200, "HTTP 200 with error 429: slow", True),
    "overloaded": ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, 200, "HTTP 200 with error 503", True),
    "vLLM's error": ({"object": "error", "message": "out of memory", "type": "InternalServerError", "code": 500}, 200, "HTTP 200 with error 500", True),
    "MiniMax's rate limit": ({"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}}, 200, "HTTP 200 with error 429: rate limit", True),
    "Zhipu's rate limit": ({"error": {"code": "1302", "message": "并发过高"}}, 429, "HTTP 429: 并发过高", True),
    "an unknown error": ({"error": "something went wrong"}, 200, "HTTP 200 with error of unknown kind: something went wrong", True),
    "prompt too long": ({"error": {"code": 400, "message": "This model's maximum context length is 4096 tokens, max_tokens 2048 included."}}, 400, "HTTP 400", False),
    "413": (b"<html>too large</html>", 413, "HTTP 413", False),
    "a page of a firewall": ("<html>请求含有违规内容，billing</html>".encode(), 503, "HTTP 503", True),
    "500": (b"", 500, "HTTP 500", True),
    "408": ({"error": {"message": "slow"}}, 408, "HTTP 408: slow", True),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_what_may_pass_is_a_failed_try_with_what_was_said(name):
    body, status, reason, retried = FAILURES[name]
    with pytest.raises(Failure) as failed:
        read(body, status)
    assert failed.value.full_reason.startswith(reason) and failed.value.retried is retried
    is_paid = isinstance(body, dict) and body.get("usage") == USAGE
    assert failed.value.tokens == ((300, 80) if is_paid else None) and failed.value.paid is is_paid


FATAL = {
    "402 in a reply": ({"error": {"code": 402, "message": "Insufficient credits."}}, 200, "quota is used up: HTTP 200 with error 402: Insufficient"),
    "401 in a reply": ({"error": {"code": 401, "message": "No auth"}}, 200, "endpoint refuses: HTTP 200 with error 401, the API key is not"),
    "key by name": ({"error": {"code": "invalid_api_key", "message": "wrong"}}, 200, "the API key is not accepted: wrong"),
    "model by name": ({"error": {"code": "model_not_found", "message": "m"}}, 200, "no such model"),
    "MiniMax's balance": ({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}, 200, "quota is used up"),
    "balance with 500": ({"type": "error", "error": {"type": "api_error", "message": "insufficient balance (1008)"}}, 500, "quota is used up"),
    "balance with 401": ({"message": "Insufficient balance.", "type": "CreditsError"}, 401, "quota is used up"),
    "credit balance with 400": ({"error": {"type": "invalid_request_error", "message": "Your credit balance is too low"}}, 400, "quota is used up"),
    "Zhipu's balance": ({"error": {"code": "1113", "message": "您的账户已欠费，请充值后重试。"}}, 429, "quota is used up"),
    "quota": ({"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}, 429, "quota is used up: HTTP 429"),
    "403": ({"error": {"message": "no"}}, 403, "access is denied"),
    "temperature": (
        {"error": {"message": "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is supported.",
                   "param": "temperature", "code": "unsupported_value"}}, 400,
        r"refuses the parameter 'temperature' of every request.*Leave it out with the line `temperature: null` in a file of --request-options"),
    "max_tokens": (
        {"error": {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
                   "param": "max_tokens", "code": "unsupported_parameter"}}, 400, "Use --token-limit-key max_completion_tokens"),
    "an hour": ({"error": {"message": "busy"}}, 503, "endpoint asks to wait 3600 s"),
}  # fmt: skip


@pytest.mark.parametrize("name", FATAL)
def test_what_no_request_can_pass_ends_the_run(name):
    body, status, message = FATAL[name]
    with pytest.raises(EndpointError, match=message):
        read(body, status, {"retry-after": "3600"} if name == "an hour" else {})


FILTERS = {
    "Azure": ({"error": {"code": "content_filter", "status": 400, "innererror": {"code": "ResponsibleAIPolicyViolation"}, "message": "The response was filtered"}}, 400),
    "inner code alone": ({"error": {"code": "400", "innererror": {"code": "ResponsibleAIPolicyViolation"}, "message": "no"}}, 400),
    "DashScope": ({"error": {"code": "data_inspection_failed", "message": "Input data may contain inappropriate content."}}, 400),
    "DeepSeek": ({"error": {"message": "Content Exists Risk", "type": "invalid_request_error", "param": None, "code": "invalid_request_error"}}, 400),
    "Moonshot": ({"error": {"type": "content_filter", "message": "The request was rejected because it was considered high risk"}}, 400),
    "Zhipu": ({"error": {"code": "1301", "message": "系统检测到输入或生成内容可能包含不安全或敏感内容"}}, 400),
    "OpenRouter": ({"error": {"code": 403, "message": "Input was flagged", "metadata": {"reasons": ["x"], "flagged_input": "高血压"}}}, 403),
    "xAI": ({"code": "The caller does not have permission", "error": "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"}, 403),
    "MiniMax": ({"choices": None, "base_resp": {"status_code": 1027, "status_msg": "output new_sensitive"}}, 200),
    "in a reply": ({"error": {"code": "content_filter", "message": "The prompt was filtered."}}, 200),
    "451": ({"error": {"message": "内容安全审核未通过"}}, 451),
}  # fmt: skip


@pytest.mark.parametrize("name", FILTERS)
def test_a_content_filter_withholds_this_reply_and_fails_nothing(name):
    body, status = FILTERS[name]
    assert read(body, status) == Reply("", CONTENT_FILTER, 0, 0, True)


def test_a_firewalls_page_and_a_flagged_account_are_no_content_filter():
    with pytest.raises(EndpointError, match="access is denied"):
        read("<html>请求含有违规内容</html>".encode(), 403)
    with pytest.raises(EndpointError, match="access is denied"):
        read({"error": {"code": 403, "message": "Your account was suspended"}}, 403)


@pytest.mark.parametrize(
    ("body", "headers", "wait_s"),
    [
        ({"error": {"message": "busy"}}, {"retry-after": "7"}, 7.0),
        ({"error": {"message": "busy"}}, {"retry-after": "nan"}, None),
        ({"error": {"message": "busy"}}, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
        ({"error": {"message": "busy"}}, {"retry-after": "soon"}, None),
        ({"error": {"message": "busy"}}, {"retry-after": "0"}, None),
        ({"error": {"message": "busy"}}, {"retry-after": "-5"}, None),
        ({"error": {"message": "busy"}}, {"retry-after": "2", "retry-after-ms": "1500"}, 1.5),
        ({"error": {"message": "Rate limit reached. Please try again in 6m0s."}}, {}, 360.0),
        ({"error": {"message": "Rate limit reached. Please try again in 120ms. Visit"}}, {}, 0.12),
        ({"error": {"message": "Please retry after 26 seconds."}}, {}, 26.0),
        ([{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "You exceeded your current quota, please check your plan and billing details.",
                     "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "21s"}]}}], {}, 21.0),
        ({"error": {"code": 429, "status": "Too Many Requests", "message": json.dumps(
            {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "exceeded your current quota. Please retry in 20.04s."}})}}, {}, 20.04),
        ({"error": {"message": "Rate limit reached. Please try again in 1.5s."}}, {}, 1.5),
    ],
)  # fmt: skip
def test_the_wait_is_what_header_or_error_ask_for(body, headers, wait_s):
    with pytest.raises(Failure) as failed:
        read(body, 429, headers)
    assert failed.value.retried and failed.value.wait_s == (None if wait_s is None else pytest.approx(wait_s))


def test_a_date_to_wait_for_is_waited_for():
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    with pytest.raises(Failure) as failed:
        read(b"", 429, {"retry-after": date})
    assert failed.value.wait_s == pytest.approx(89, abs=2)
    with pytest.raises(EndpointError, match="endpoint asks to wait"):
        read({"error": {"message": "Please try again in 1h12m3.5s."}}, 429)


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens must be at least 1, got -10.",
        "Input validation error: `inputs` must have less than 4096 tokens. Given: 5000",
        "Invalid request: Your request exceeded model token limit: 8192",
        "Prompt 超长",
    ],
)
def test_a_prompt_that_is_too_long_says_nothing_about_the_endpoint(message):
    with pytest.raises(Failure) as failed:
        read({"error": {"message": message}}, 400)
    assert failed.value.about_prompt and not failed.value.retried


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["stop", "text", "content_filter", "429"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["choices", "message", "content", "finish_reason", "error", "code", "type", "text", "usage", "prompt_tokens", "completion_tokens", "detail", "base_resp", "status_code", "param", "metadata", "innererror", "refusal", "promptFeedback", "object", "status", "details"]),
        inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(JSON | st.builds(completion, JSON, JSON, error=JSON, usage=JSON), st.sampled_from([200, 400, 403, 429, 500]))
def test_any_body_is_a_reply_a_failed_try_or_an_error(body, status):
    raw = json.dumps(body).encode()
    try:
        reply = read(raw, status)
    except Failure as failed:
        assert failed.full_reason and (failed.tokens is None or min(failed.tokens) >= 0)
        failed.full_reason.encode("utf-8", "surrogatepass")
    except EndpointError as error:
        assert "http://host/v1" in str(error)
    else:
        assert reply.finish_reason in ("stop", "length", "tool_calls", CONTENT_FILTER, REFUSAL)
        reply.content.encode()
        assert 0 <= reply.prompt_tokens < 1 << 53 and 0 <= reply.completion_tokens < 1 << 53


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([200, 404, 500]))
def test_any_bytes_are_a_failed_try_or_an_error(raw, status):
    with pytest.raises((Failure, EndpointError)):
        read(raw, status)
