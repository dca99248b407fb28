"""The second model: what its verdicts do, what they cost, and that none is paid twice."""

from __future__ import annotations

import json

import pytest

from megatron_huatuo.errors import ConfigError, EndpointError
from megatron_huatuo.storage.jsonl import read_jsonl
from megatron_huatuo.storage.manifest import read_json, read_manifest
from megatron_huatuo.unify import CheckSettings, SamplingSettings, unify
from megatron_huatuo.unify.writers.writer_prompts import load_prompts
from megatron_huatuo.unify.writers.writer_second_model import read_verdict
from tests.unit.unify.conftest import make_documents
from tests.unit.unify.endpoint_server import Asked, EndpointServer, Reply, completion, echo_writer

VERDICTS = {
    "第1组": '{"verdict": "no", "reason": "剂量与内容不符"}',
    "第2组": "否",
    "第3组": "Looks fine to me!",
    "第4组": "```json\n{\"verdict\": \"yes\"}\n```",
    "第5组": "<think>no? yes?</think>yes.",
    "第6组": "",
}  # fmt: skip


def is_check(asked: Asked) -> bool:
    return asked.payload["model"] == "judge"


def writer_and_judge(asked: Asked) -> Reply:
    if not is_check(asked):
        return echo_writer(asked)
    return completion(next((text for group, text in VERDICTS.items() if group in asked.prompt), "yes"), usage=(20, 3))


def run(server: EndpointServer, documents, output, impatient, check=None, **settings) -> dict:
    return unify([documents], output, backend="openai", base_url=server.base_url, model="m", patience=impatient,
                 check=check or CheckSettings(check_model="judge"), **settings)  # fmt: skip


def test_only_a_clear_yes_lets_a_pair_pass(write_documents, impatient, tmp_path):
    with EndpointServer(writer_and_judge) as server:
        report = run(server, write_documents(8), tmp_path / "out", impatient)
        checks = [asked for asked in server.asked if is_check(asked)]
    rejected = {line.record["id"]: line.record["reason"] for line in read_jsonl(tmp_path / "out" / "rejected.jsonl")}
    assert rejected == {
        "d1": "second_model: 剂量与内容不符",
        "d2": "second_model: no reason given",
        "d3": "second_model_unreadable: Looks fine to me!",
        "d6": "second_model_unreadable: empty reply",
    }
    assert report["rejected_by_reason"] == {"second_model": 2, "second_model_unreadable": 2} and report["pairs"] == 4
    assert report["examples"]["second_model"][0]["answer"].startswith("糖尿病患者第1组")
    # It saw the passage, the question and the answer, and is asked without temperature.
    prompt = next(asked.prompt for asked in checks if "第1组" in asked.prompt)
    assert prompt.count(make_documents(2)[1]["text"]) == 2 and "要点是什么" in prompt
    assert len(checks) == 8 and {asked.payload["temperature"] for asked in checks} == {0.0}


def test_the_second_model_stands_in_provenance_manifest_and_ledger_at_its_own_price(
    write_documents, impatient, tmp_path
):
    prices = tmp_path / "prices.yaml"
    prices.write_text(
        "m: {prompt_usd_per_million: 1000, completion_usd_per_million: 3000}\n"
        "judge: {prompt_usd_per_million: 100, completion_usd_per_million: 200}\n"
    )
    with EndpointServer(writer_and_judge) as server:
        run(server, write_documents(8), tmp_path / "out", impatient, prices=str(prices), budget_usd=50)
    prompt = load_prompts()["zh"]
    for line in read_jsonl(tmp_path / "out" / "conversations.jsonl"):
        made = line.record["provenance"]
        assert (made["check_model"], made["check_prompt_sha256"]) == ("judge", prompt.check_sha256)
    described = read_manifest(tmp_path / "out", "unified")["backend"]["check"]
    assert described["model"] == "judge" and described["prompts"]["zh"]["sha256"] == prompt.check_sha256
    ledger = read_json(tmp_path / "out" / "ledger.json")
    assert ledger["by_model"]["judge"] == {
        "model": "judge", "replies": 8, "uncounted": 0, "unanswered": 0, "prompt_tokens": 160, "completion_tokens": 24,
    }  # fmt: skip
    writer_usd, judge_usd = 16 * (11 * 1000e-6 + 7 * 3000e-6), 8 * (20 * 100e-6 + 3 * 200e-6)
    assert ledger["cost_usd"] == pytest.approx(writer_usd + judge_usd) and ledger["requests"] == 24


def test_checks_count_for_the_budget_and_are_not_repeated_by_a_larger_one(write_documents, impatient, tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text(
        "\n".join(f"{m}: {{prompt_usd_per_million: 1000, completion_usd_per_million: 3000}}" for m in ("m", "judge"))
    )
    settings = {"prices": str(prices), "max_concurrency": 1,
                "sampling": SamplingSettings(max_question_tokens=64, max_answer_tokens=64)}  # fmt: skip
    check = CheckSettings(check_model="judge", max_check_tokens=64)
    with EndpointServer(writer_and_judge) as server:
        report = run(server, write_documents(8), tmp_path / "out", impatient, check, budget_usd=1.6, **settings)
        assert report["state"] == "stopped: budget" and report["not_reached"] > 0
        assert any(map(is_check, server.asked))
        assert read_json(tmp_path / "out" / "ledger.json")["cost_usd"] <= 1.6
        report = run(server, write_documents(8), tmp_path / "out", impatient, check, budget_usd=200.0, **settings)
        payloads = [json.dumps(asked.payload) for asked in server.asked]
    assert report["state"] == "complete" and len(payloads) == len(set(payloads)) == 24


def test_a_run_that_was_stopped_asks_for_no_verdict_twice(write_documents, impatient, tmp_path):
    def broken_after_10(asked: Asked) -> Reply:
        return writer_and_judge(asked) if asked.number < 10 else Reply(b"{}", 401)

    documents = write_documents(8)
    with EndpointServer(broken_after_10) as server:
        with pytest.raises(EndpointError, match="HTTP 401"):
            run(server, documents, tmp_path / "out", impatient, max_concurrency=1)
        first = {json.dumps(asked.payload) for asked in server.asked[:10]}
        assert any(map(is_check, server.asked[:10]))
    with EndpointServer(writer_and_judge) as server:
        run(server, documents, tmp_path / "out", impatient)
        assert len(server.asked) == 14 and not first & {json.dumps(asked.payload) for asked in server.asked}


FAULTS = {
    "refused": (Reply(b'{"error": {"message": "no"}}', 400), "endpoint failed"),
    "cut off": (completion('{"verdict": "yes"', "length"), "second_model_unreadable"),
    "no choices": (Reply(b'{"choices": []}'), "endpoint failed"),
    "both": (completion('{"verdict": "yes"} {"verdict": "no"}'), "second_model_unreadable"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_second_model_that_misbehaves_costs_only_the_pair(fault, write_documents, impatient, tmp_path):
    reply, reason = FAULTS[fault]

    def handler(asked: Asked) -> Reply:
        if is_check(asked) and "第1组" in asked.prompt:
            return reply
        return completion("yes") if is_check(asked) else echo_writer(asked)

    with EndpointServer(handler) as server:
        report = run(server, write_documents(3), tmp_path / "out", impatient)
    assert report["pairs"] == 2 and report["rejected_by_reason"] == {reason: 1}


def test_a_fault_that_passes_costs_a_retry(write_documents, impatient, tmp_path):
    seen: set[str] = set()

    def handler(asked: Asked) -> Reply:
        if is_check(asked) and asked.prompt not in seen:
            seen.add(asked.prompt)
            return Reply(b"<html>busy</html>", 503)
        return completion("yes") if is_check(asked) else echo_writer(asked)

    with EndpointServer(handler) as server:
        assert run(server, write_documents(3), tmp_path / "out", impatient)["pairs"] == 3
    assert read_json(tmp_path / "out" / "ledger.json")["failed_tries"] == {"HTTP 503": 3}


def test_each_address_gets_its_own_key_and_no_other(write_documents, impatient, tmp_path, monkeypatch):
    monkeypatch.setenv("HUATUO_FIRST", "sk-first")
    monkeypatch.setenv("HUATUO_SECOND", "sk-second")
    with EndpointServer() as server, EndpointServer(lambda asked: completion("yes")) as judge:
        documents = write_documents(2)
        for name, key_env, key in (("a", "HUATUO_SECOND", "sk-second"), ("b", None, "none")):
            check = CheckSettings("judge", judge.base_url, key_env)
            assert run(server, documents, tmp_path / name, impatient, check, api_key_env="HUATUO_FIRST")["pairs"] == 2
            assert {asked.headers["Authorization"] for asked in judge.asked} == {f"Bearer {key}"}
            judge.asked.clear()
        assert {asked.headers["Authorization"] for asked in server.asked} == {"Bearer sk-first"}


def test_one_endpoint_never_gets_more_requests_at_once_than_allowed(write_documents, impatient, tmp_path):
    running, most = 0, 0

    class Counting(EndpointServer):
        async def _answer(self, request):
            nonlocal running, most
            running += 1
            most = max(most, running)
            try:
                return await super()._answer(request)
            finally:
                running -= 1

    def slow(asked: Asked) -> Reply:
        reply = completion("yes") if is_check(asked) else echo_writer(asked)
        reply.delay_s = 0.003
        return reply

    with Counting(slow) as server:
        run(server, write_documents(20), tmp_path / "out", impatient, max_concurrency=3)
    assert most == 3


def test_pairs_that_are_taken_over_and_queries_are_checked_too(impatient, tmp_path):
    rows = [
        {"id": "pair", "question": "高血压患者应当怎样饮食？", "answer": "应减少食盐摄入，多吃蔬菜，并控制体重。"},
        {"id": "wrong", "question": "第1组患者应当怎样饮食？", "answer": "多吃盐，少吃蔬菜，体重可以不用管。"},
        {"id": "query", "query": "感冒了怎么办？"},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")

    def handler(asked: Asked) -> Reply:
        return writer_and_judge(asked) if is_check(asked) else completion("多休息，多饮水，注意观察体温变化。")

    with EndpointServer(handler) as server:
        report = run(server, path, tmp_path / "out", impatient, pairs=True, gate_pairs=True)
        assert sum(map(is_check, server.asked)) == 3 and all("【内容】" not in asked.prompt for asked in server.asked)
    assert report["pairs"] == 2 and report["rejected_by_reason"] == {"second_model": 1}


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("yes", ("yes", "")), ("No.", ("no", "")), ("是。", ("yes", "")), ("否", ("no", "")),
        ('{"verdict": "NO", "reason": "a\\n b"}', ("no", "a b")), ('{"verdict": "yes", "reason": null}', ("yes", "")),
        ("yes and no", None), ("", None), ("[]", None), ('{"verdict": true}', None), ('{"verdict": "maybe"}', None),
        ('{"reason": "good"}', None), ('{"verdict": "yes", "score": 1}', None), ('{"verdict": "yes", "reason": 5}', None),
    ],
)  # fmt: skip
def test_verdicts_are_read_strictly(text, verdict):
    assert read_verdict(text) == verdict


def test_settings_that_would_have_no_effect_are_refused(write_documents, tmp_path):
    with pytest.raises(ConfigError, match="have no effect without --check-model"):
        CheckSettings(check_base_url="http://h/v1")
    with pytest.raises(ConfigError, match="--check-api-key-env has no effect without --check-base-url"):
        CheckSettings("judge", check_api_key_env="KEY")
    with pytest.raises(ConfigError, match="wrong max_check_tokens: got 0"):
        CheckSettings("judge", max_check_tokens=0)
    with pytest.raises(ConfigError, match="--check-model has no effect with the template backend"):
        unify([write_documents(1)], tmp_path / "out", check=CheckSettings("judge"))
    prices = tmp_path / "prices.yaml"
    prices.write_text("m: {prompt_usd_per_million: 1, completion_usd_per_million: 3}\n")
    with pytest.raises(ConfigError, match="no price for model 'judge'"):
        unify([write_documents(1)], tmp_path / "out", backend="openai", base_url="http://h/v1", model="m",
              prices=str(prices), check=CheckSettings("judge"))  # fmt: skip
