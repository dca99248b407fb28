"""A real server that misbehaves: what a run makes of it."""

from __future__ import annotations

import asyncio
import json
import os
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_huatuo.errors import ConfigError, DataError, EndpointError
from megatron_huatuo.llm.api_key import ApiKey
from megatron_huatuo.llm.budget import Budget
from megatron_huatuo.llm.endpoint_settings import EndpointSettings
from megatron_huatuo.llm.request_log import RequestLog, read_totals
from megatron_huatuo.llm.retries import Endpoint, RequestFailed
from megatron_huatuo.log import get_logger
from megatron_huatuo.storage.jsonl import read_jsonl
from megatron_huatuo.storage.manifest import read_json
from megatron_huatuo.unify import PatienceSettings, unify
from tests.unit.unify.endpoint_server import Asked, EndpointServer, Reply, completion, echo_writer

HTML = {"Content-Type": "text/html"}
PASSING_FAULTS = {
    "time-out": (Reply(delay_s=5.0), "time-out"),
    "reset": (Reply(reset=True), "connection broken"),
    "429": (Reply(b"{}", 429), "HTTP 429"),
    "429 with Retry-After": (Reply(b"{}", 429, {"Retry-After": "0.2"}), "HTTP 429"),
    "500 with HTML": (Reply(b"<html>Internal Server Error</html>", 500, HTML), "HTTP 500"),
    "503 empty": (Reply(b"", 503), "HTTP 503"),
    "garbage": (Reply(b"\x00\xff not json"), "garbage instead of a completion"),
    "half a body": (Reply(b'{"choices": [{"mess'), "garbage instead of a completion"),
    "wrong shape": (
        Reply(b'{"choices": [{"finish_reason": "stop", "message": "text"}]}'),
        "garbage instead of a completion",
    ),
}


def run(server: EndpointServer, documents: Path, output: Path, patience: PatienceSettings, **settings) -> dict:
    return unify(
        [documents], output, backend="openai", base_url=server.base_url, model="m", patience=patience, **settings
    )


def conversations(output: Path) -> list[dict]:
    return [line.record for line in read_jsonl(output / "conversations.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize("fault", PASSING_FAULTS)
def test_a_fault_that_passes_costs_a_retry_and_no_document(fault, write_documents, impatient, tmp_path):
    reply, reason = PASSING_FAULTS[fault]
    seen: Counter[str] = Counter()

    def first_time_faulty(asked: Asked) -> Reply:
        seen[asked.prompt] += 1
        return reply if seen[asked.prompt] == 1 and asked.number % 2 == 0 else echo_writer(asked)

    patience = replace(impatient, request_timeout_s=1.0) if fault == "time-out" else impatient
    with EndpointServer(first_time_faulty) as server:
        report = run(server, write_documents(4), tmp_path / "out", patience)
        faulty = sum(count - 1 for count in seen.values())
    ledger = read_json(tmp_path / "out" / "ledger.json")
    assert report["pairs"] == 4 and report["rejected"] == 0
    assert faulty > 0 and sum(ledger["failed_tries"].values()) == faulty
    assert {name.split(":")[0] for name in ledger["failed_tries"]} == {reason}
    assert ledger["requests"] == 8 and ledger["this_run"]["retries"] == faulty
    assert (ledger["prompt_tokens"], ledger["completion_tokens"]) == (8 * 11, 8 * 7)


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "API key is not accepted"), (402, "payment"), (403, "access is denied"), (404, "no such model")],
)
def test_a_refusal_for_good_stops_the_run_without_a_retry(status, message, write_documents, impatient, tmp_path):
    with EndpointServer(lambda asked: Reply(b'{"error": {"message": "no"}}', status)) as server:
        with pytest.raises(EndpointError, match=message):
            run(server, write_documents(30), tmp_path / "out", impatient, max_concurrency=2)
        assert len(server.asked) <= 2
    assert not (tmp_path / "out").exists()


def test_used_up_quota_stops_the_run_without_a_retry(write_documents, impatient, tmp_path):
    body = b'{"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}'
    with EndpointServer(lambda asked: Reply(body, 429, {"Retry-After": "1"})) as server:
        with pytest.raises(EndpointError, match="quota is used up"):
            run(server, write_documents(5), tmp_path / "out", impatient, max_concurrency=1)
        assert len(server.asked) == 1


def test_a_wish_to_wait_an_hour_stops_the_run(write_documents, impatient, tmp_path):
    with EndpointServer(lambda asked: Reply(b"{}", 429, {"Retry-After": "3600"})) as server:
        with pytest.raises(EndpointError, match="asks to wait 3600 s"):
            run(server, write_documents(5), tmp_path / "out", impatient, max_concurrency=1)
        assert len(server.asked) == 1


def test_an_endpoint_that_only_fails_is_given_up(write_documents, tmp_path):
    patience = PatienceSettings(max_retries=1, backoff_s=0.01, max_failures_in_a_row=3)
    with EndpointServer(lambda asked: Reply(b"", 500)) as server:
        with pytest.raises(EndpointError, match="fails for good: 3 requests in a row, the last with HTTP 500"):
            run(server, write_documents(50), tmp_path / "out", patience, max_concurrency=1)
        assert len(server.asked) == 3 * 2


@pytest.mark.parametrize(
    ("proxy", "reply", "error", "message"),
    [
        ("127.0.0.1:{port}", None, None, ""),
        ("socks5h://127.0.0.1:{port}", None, ConfigError, "proxy of another kind: got socks5h://.*NO_PROXY=a.invalid"),
        ("", Reply(status=302, headers={"Location": "/b"}), EndpointError, "endpoint has moved: .*v1/chat/completions redirects to .*/b,"),
        ("", Reply(reset=True), RequestFailed, "connection broken: Server disconnected"),
    ],
)  # fmt: skip
def test_proxies_and_redirections_are_followed_or_named(proxy, reply, error, message, monkeypatch, tmp_path):
    async def ask() -> str:
        url = "http://a.invalid/v1" if proxy else server.base_url
        patience = PatienceSettings(max_retries=0, backoff_s=0.01)
        endpoint = Endpoint(EndpointSettings(url, "m", 1, patience), ApiKey(None), log, Budget())
        payload = {"model": "m", "messages": [{"role": "user", "content": "【内容】痛风"}], "max_tokens": 9}
        try:
            return (await endpoint.complete(payload, 0)).content
        finally:
            await endpoint.close()

    log = RequestLog(tmp_path / "log.sqlite")
    with EndpointServer(lambda asked: reply or echo_writer(asked)) as server:
        monkeypatch.setenv("ALL_PROXY", proxy.format(port=server.port))
        if error is None:
            assert asyncio.run(ask())
        else:
            with pytest.raises(error, match=message):
                asyncio.run(ask())
    log.close()


def test_no_server_at_all_is_named_after_three_tries_whatever_the_patience(write_documents, tmp_path):
    patience = PatienceSettings(max_retries=50, backoff_s=0.05)
    with pytest.raises(
        EndpointError, match=r"no server at http://127.0.0.1:9/v1: no connection.*vllm serve m --port 9"
    ):
        unify([write_documents(2)], tmp_path / "out", backend="openai", base_url="http://127.0.0.1:9/v1", model="m",
              patience=patience)  # fmt: skip
    (totals, failures) = read_totals(tmp_path / "out.requests")
    # The first request that fails three times ends the run; the other one may still be at its second or third try.
    assert 3 <= failures["no connection"] <= 6 and sum(row.unanswered for row in totals) <= 1


def test_a_server_that_goes_away_later_is_waited_for(impatient, tmp_path):
    async def ask_before_and_after() -> RequestFailed:
        settings = EndpointSettings(server.base_url, "m", 1, impatient)
        endpoint = Endpoint(settings, ApiKey(None), log, Budget())
        payload = {"model": "m", "messages": [{"role": "user", "content": "【内容】痛风"}], "max_tokens": 9}
        await endpoint.complete(payload, 0)
        server.__exit__()
        with pytest.raises(RequestFailed) as failed:
            await endpoint.complete(payload, 1)
        await endpoint.close()
        return failed.value

    log = RequestLog(tmp_path / "log.sqlite")
    server = EndpointServer()
    server.__enter__()
    assert asyncio.run(ask_before_and_after()).reason.startswith("no connection")
    assert sum(log.sums()[1].values()) == impatient.max_retries + 1
    log.close()


BAD_REPLIES = {
    "refused": (Reply(b'{"error": {"message": "context too long"}}', 400), "endpoint failed: HTTP 400", 1),
    "no choices": (Reply(b'{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 0}}'), "endpoint failed: no choices", 4),
    "no content": (completion(None), "empty reply", 2),
    "cut off": (completion("高血压患者每日服药", "length"), "cut off: at 2048 tokens", 2),
    "filtered": (completion("", "content_filter"), "content filter", 1),
    "10 MB": (completion("a" * (10 << 20)), "endpoint failed: reply over 8 MiB", 1),
    "long": (completion("这里没有要点可言，" * 2000), "answer too long: 18000 characters", 2),
    "wrong language": (completion("Patients should take their medicine every day."), "wrong language of the answer", 2),
    "echo of the prompt": (completion("【内容】高血压\n高血压患者应遵医嘱。"), "answer is an echo", 2),
    "refusal": (completion("很抱歉，我无法提供医疗建议。"), "refusal: 很抱歉", 2),
    "leak": (completion("根据上述资料，患者应遵医嘱服药，并定期复查。"), "answer mentions the text", 2),
    "loop": (completion("治疗时应遵医嘱，" * 60), "answer repeats itself", 2),
    "other dose": (completion("治疗时应遵医嘱，每次服用500毫克，并定期复查。"), "numbers not in the passage: 500 mg", 2),
    "off the point": (completion("飞机起飞前请系好安全带，收起小桌板，打开遮光板。"), "unfaithful", 2),
    "damaged": (completion("治疗时应遵医嘱\ufffd，并定期复查。"), "damaged text", 2),
    "half a character": (Reply(b'{"choices": [{"finish_reason": "stop", "message": {"content": "\\u6cbb\\u7597\\ud83d\\u65f6\\u5e94\\u9075\\u533b\\u5631\\u3002"}}]}'), "damaged text", 2),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD_REPLIES)
def test_a_bad_answer_is_rejected_with_its_reason_after_bounded_tries(fault, write_documents, impatient, tmp_path):
    reply, reason, tries = BAD_REPLIES[fault]

    def handler(asked: Asked) -> Reply:
        return reply if asked.wants_answer and "第1组" in asked.prompt else echo_writer(asked)

    with EndpointServer(handler) as server:
        report = run(server, write_documents(3), tmp_path / "out", impatient)
        bad_requests = sum(asked.wants_answer and "第1组" in asked.prompt for asked in server.asked)
    rejected = [line.record for line in read_jsonl(tmp_path / "out" / "rejected.jsonl")]
    assert report["pairs"] == 2 and bad_requests == tries
    assert [row["id"] for row in rejected] == ["d1"] and rejected[0]["reason"].startswith(reason)
    assert rejected[0]["file"].endswith("documents.jsonl") and rejected[0]["line"] == 2
    assert sum(report["rejected_by_reason"].values()) == 1


def test_a_second_draft_may_pass(write_documents, impatient, tmp_path):
    seen: set[str] = set()

    def handler(asked: Asked) -> Reply:
        first = asked.prompt not in seen
        seen.add(asked.prompt)
        return completion("请根据文本中的内容说明要点？") if first and not asked.wants_answer else echo_writer(asked)

    with EndpointServer(handler) as server:
        assert run(server, write_documents(3), tmp_path / "out", impatient)["pairs"] == 3
        assert len(server.asked) == 3 * 3


@pytest.mark.slow
def test_output_does_not_depend_on_concurrency(write_documents, impatient, tmp_path):
    def handler(asked: Asked) -> Reply:
        reply = echo_writer(asked)
        reply.delay_s = (asked.number * 7919 % 50) / 1000
        if "第5组" in asked.prompt:
            return Reply(b"{}", 400)
        return reply

    documents = write_documents(40)
    with EndpointServer(handler) as server:
        for name, concurrency in (("one", 1), ("many", 32)):
            run(server, documents, tmp_path / name, impatient, max_concurrency=concurrency)
    for name in ("conversations.jsonl", "rejected.jsonl", "report.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()


def test_a_rerun_asks_only_what_has_no_reply(write_documents, impatient, tmp_path):
    def broken_after_20(asked: Asked) -> Reply:
        return echo_writer(asked) if asked.number < 20 else Reply(b"{}", 401)

    documents, output = write_documents(25), tmp_path / "out"
    with EndpointServer(broken_after_20) as server:
        with pytest.raises(EndpointError, match="HTTP 401"):
            run(server, documents, output, impatient, max_concurrency=1)
        first = [json.dumps(asked.payload) for asked in server.asked[:20]]
    with EndpointServer() as server:
        assert run(server, documents, output, impatient)["pairs"] == 25
        second = [json.dumps(asked.payload) for asked in server.asked]
    assert len(second) == 30 and not set(first) & set(second)
    assert read_json(output / "ledger.json")["requests"] == 50


def test_failed_documents_are_named_at_the_end_and_asked_again_by_the_next_run(
    write_documents, impatient, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(get_logger("megatron_huatuo"), "propagate", True)
    documents, output = write_documents(3), tmp_path / "out"
    with EndpointServer(lambda a: Reply(b"", 500) if "第1组" in a.prompt else echo_writer(a)) as server:
        assert run(server, documents, output, impatient)["rejected_by_reason"] == {"endpoint failed": 1}
    assert "1 documents failed at the endpoint; the same command again asks for them alone" in caplog.text
    caplog.clear()
    with EndpointServer() as server:
        assert run(server, documents, output, impatient)["pairs"] == 3
        assert "failed at the endpoint" not in caplog.text
        assert len(server.asked) == 2


def test_the_api_key_is_in_no_output(write_documents, impatient, tmp_path, monkeypatch, capfd, caplog):
    """Also when the endpoint sends it back, in errors and in answers."""
    key = "sk-canary-7f3a9b2c4d5e6f70"
    monkeypatch.setenv("HUATUO_TEST_KEY", key)

    def handler(asked: Asked) -> Reply:
        assert asked.headers["Authorization"] == f"Bearer {key}"
        if "第1组" in asked.prompt:
            return Reply(json.dumps({"error": {"message": f"bad request with {key}"}}).encode(), 400)
        if asked.wants_answer and "第2组" in asked.prompt:
            return completion(f"很抱歉，{key}", finish_reason=key)
        return Reply(f"<html>{key}</html>".encode(), 401) if "第3组" in asked.prompt else echo_writer(asked)

    with EndpointServer(handler) as server:
        with pytest.raises(EndpointError) as stopped:
            run(server, write_documents(4), tmp_path / "out", impatient, api_key_env="HUATUO_TEST_KEY")
        run(server, write_documents(3), tmp_path / "out", impatient, api_key_env="HUATUO_TEST_KEY")
    files = [Path(folder) / name for folder, _, names in os.walk(tmp_path) for name in names]
    assert {path.name for path in files} >= {"known.sqlite", "ledger.json", "manifest.json", "rejected.jsonl"}
    for path in files:
        assert key.encode() not in path.read_bytes(), path
    captured = capfd.readouterr()
    assert key not in captured.out + captured.err + caplog.text + "".join(traceback.format_exception(stopped.value))


def test_without_an_api_key_option_none_is_taken_from_the_environment(
    write_documents, impatient, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-you")
    with EndpointServer() as server:
        run(server, write_documents(1), tmp_path / "out", impatient)
        assert all("sk-not-for-you" not in str(asked.headers) for asked in server.asked)


def test_two_runs_on_one_output_are_refused(write_documents, impatient, tmp_path):
    from megatron_huatuo.storage.lock import exclusive

    with exclusive(tmp_path / "out"), pytest.raises(DataError, match="another process is writing"):
        unify([write_documents(1)], tmp_path / "out")
