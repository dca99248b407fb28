"""What an endpoint says, over whole runs against a real server: keys, wrapping, errors in replies, filters, budgets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_huatuo.errors import ConfigError, DataError, EndpointError
from megatron_huatuo.llm.endpoint_settings import PatienceSettings
from megatron_huatuo.storage.jsonl import read_jsonl
from megatron_huatuo.storage.manifest import read_json, read_manifest
from megatron_huatuo.unify import QualitySettings, SamplingSettings, unify
from tests.unit.unify.conftest import make_documents
from tests.unit.unify.endpoint_server import Asked, EndpointServer, Reply, completion, echo_writer

EVERYTHING_PASSES = QualitySettings(near_duplicate_similarity=2)
PRICES = "m: {prompt_usd_per_million: 1000, completion_usd_per_million: 1000}\n"


def run(
    server: EndpointServer, documents: Path, output: Path, patience: PatienceSettings, **more: Any
) -> dict[str, Any]:
    more.setdefault("quality", EVERYTHING_PASSES)
    return unify([documents], output, backend="openai", base_url=server.base_url, model="m", patience=patience, **more)


def turns(output: Path) -> list[list[str]]:
    lines = read_jsonl(output / "conversations.jsonl")
    return [[turn["value"] for turn in line.record["conversations"]] for line in lines]


def reasons(output: Path) -> list[str]:
    return [line.record["reason"] for line in read_jsonl(output / "rejected.jsonl")]


def body(content: Any, status: int = 200) -> Reply:
    return Reply(json.dumps(content, ensure_ascii=False).encode(), status, {"Content-Type": "application/json"})


def rewritten(reply: Reply, **choice: Any) -> Reply:
    """A reply with other fields in its choice."""
    content = json.loads(reply.body)
    content["choices"][0].update(choice)
    return body(content)


@pytest.mark.parametrize("key", ["none", "EMPTY", "x", "1", "ollama", "高血压", "sk-no-key-required"])
def test_a_key_that_is_an_ordinary_word_changes_nothing(key, write_documents, impatient, tmp_path, monkeypatch):
    documents = write_documents(3)

    def handler(asked: Asked) -> Reply:
        reply = echo_writer(asked)
        text = json.loads(reply.body)["choices"][0]["message"]["content"]
        return completion(
            f"{text}其中 none 为 0，EMPTY 为 1，x 不限，ollama 与 sk-no-key-required 除外。"
            if asked.wants_answer
            else text
        )

    with EndpointServer(handler) as server:
        quality = QualitySettings(check_numbers=False, min_sentence_faithfulness=0)
        run(server, documents, tmp_path / "without", impatient, quality=quality)
        monkeypatch.setenv("LOCAL_KEY", key)
        if key.isascii():
            run(server, documents, tmp_path / "with", impatient, quality=quality, api_key_env="LOCAL_KEY")
            assert server.asked[-1].headers["Authorization"] == f"Bearer {key}"
            assert turns(tmp_path / "with") == turns(tmp_path / "without") and len(turns(tmp_path / "with")) == 3


def test_a_reply_that_holds_a_real_key_is_rejected_and_never_edited(write_documents, impatient, tmp_path, monkeypatch):
    key = "sk-canary-7f3a9b2c4d5e6f70"
    monkeypatch.setenv("HUATUO_TEST_KEY", key)

    def handler(asked: Asked) -> Reply:
        reply = echo_writer(asked)
        text = json.loads(reply.body)["choices"][0]["message"]["content"]
        return completion(f"{text}{key}") if asked.wants_answer and "第1组" in asked.prompt else reply

    with EndpointServer(handler) as server:
        report = run(server, write_documents(3), tmp_path / "out", impatient, api_key_env="HUATUO_TEST_KEY")
    assert report["pairs"] == 2 and reasons(tmp_path / "out") == ["reply holds the API key"]
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name != "documents.jsonl":
            assert key.encode() not in path.read_bytes() and b"[key]" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("先看内容。\n</think>\n\n{}", "逐点讲。\n</think>\n\n{}"),
        ("<|channel|>analysis<|message|>想<|end|><|start|>assistant<|channel|>final<|message|>{}", "<thought>想</thought>{}<|im_end|>"),
        ("好的，以下是根据您提供的内容生成的问题：\n\n**问题：** “{}”", "好的，下面是我的回答：\n\n```markdown\n{}\n```"),
        ('{{"question": "{}"}}', '```json\n{{"answer": "{}"}}\n```'),
        ("1. {}", "**回答：** {}\n\n希望以上回答对您有所帮助。"),
    ],
)  # fmt: skip
def test_nothing_of_the_wrapping_becomes_training_text(question, answer, write_documents, impatient, tmp_path):
    def wrapped(asked: Asked) -> Reply:
        text = json.loads(echo_writer(asked).body)["choices"][0]["message"]["content"]
        return completion((answer if asked.wants_answer else question).format(text))

    documents = write_documents(4)
    with EndpointServer() as server:
        run(server, documents, tmp_path / "clean", impatient)
    with EndpointServer(wrapped) as server:
        run(server, documents, tmp_path / "wrapped", impatient)
    assert turns(tmp_path / "wrapped") == turns(tmp_path / "clean") and len(turns(tmp_path / "clean")) == 4


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("<think>先看内容，", "thoughts: without an end"),
        ("<think>先看内容。</think>", "thoughts: nothing after them"),
        ("要点如下。\n```\n遵医嘱服药\n```\n并定期复查。", "wrapping: ```"),
    ],
)
def test_a_wrapping_with_two_readings_is_rejected_with_its_reason(answer, reason, write_documents, impatient, tmp_path):
    def handler(asked: Asked) -> Reply:
        return completion(answer) if asked.wants_answer and "第1组" in asked.prompt else echo_writer(asked)

    with EndpointServer(handler) as server:
        assert run(server, write_documents(3), tmp_path / "out", impatient)["pairs"] == 2
    assert reasons(tmp_path / "out") == [reason]


def test_several_questions_in_one_reply_are_no_question(write_documents, impatient, tmp_path):
    def handler(asked: Asked) -> Reply:
        return echo_writer(asked) if asked.wants_answer else completion("1. 常见症状是什么？\n2. 如何治疗？")

    with (
        EndpointServer(handler) as server,
        pytest.raises(
            DataError,
            match=r"3 of 3 were rejected for 'several questions', the first with 'several questions'.*--preview 5",
        ),
    ):
        run(server, write_documents(3), tmp_path / "out", impatient)


@pytest.mark.parametrize("finish_reason", ["error", "insufficient_system_resource", "network_error", "abort", None])
def test_an_unfinished_reply_is_a_failed_try_that_is_paid_and_tried_again(
    finish_reason, write_documents, impatient, tmp_path
):
    seen: set[str] = set()

    def handler(asked: Asked) -> Reply:
        if asked.prompt in seen:
            return echo_writer(asked)
        seen.add(asked.prompt)
        return rewritten(echo_writer(asked), finish_reason=finish_reason)

    with EndpointServer(handler) as server:
        assert run(server, write_documents(3), tmp_path / "out", impatient)["pairs"] == 3
        assert len(server.asked) == 12
    ledger = read_json(tmp_path / "out" / "ledger.json")
    assert (ledger["requests"], ledger["replies_unread"], ledger["prompt_tokens"]) == (6, 6, 12 * 11)
    assert ledger["failed_tries"] == {"unfinished reply": 6}


@pytest.mark.parametrize("finish_reason", ["eos", "eos_token", "end_turn", "STOP", {"type": "stop", "matched": 2}])
def test_other_words_for_a_clean_stop_are_known(finish_reason, write_documents, impatient, tmp_path):
    with EndpointServer(lambda asked: rewritten(echo_writer(asked), finish_reason=finish_reason)) as server:
        assert run(server, write_documents(2), tmp_path / "out", impatient)["pairs"] == 2
        assert len(server.asked) == 4


def test_an_error_in_a_reply_of_status_200_is_judged_by_its_own_code(write_documents, impatient, tmp_path):
    error = {"error": {"code": 402, "message": "Insufficient credits."}}
    with EndpointServer(lambda asked: body(error)) as server:
        with pytest.raises(EndpointError, match="quota is used up: HTTP 200 with error 402: Insufficient credits"):
            run(server, write_documents(30), tmp_path / "out", impatient, max_concurrency=2)
        assert len(server.asked) <= 2


@pytest.mark.parametrize("outage", [{"id": None, "choices": None, "usage": None}, {"choices": []}])
def test_an_outage_is_named_and_the_same_command_asks_again(outage, write_documents, impatient, tmp_path):
    documents = write_documents(3)
    with EndpointServer(lambda asked: body(outage)) as server:
        with pytest.raises(
            DataError,
            match=r"nothing left: 3 documents in, no pair out. 3 of 3 were rejected for 'endpoint failed', the first with "
            r"'endpoint failed: no choices'.*Check the endpoint and run the same command again",
        ):
            run(server, documents, tmp_path / "out", impatient)
        assert len(server.asked) == 3 * (impatient.max_retries + 1)
    with EndpointServer() as server:
        assert run(server, documents, tmp_path / "out", impatient)["pairs"] == 3


def test_a_filtered_passage_is_rejected_for_good_and_fails_no_endpoint(write_documents, tmp_path):
    def handler(asked: Asked) -> Reply:
        number = int(re.search(r"第(\d+)组", asked.prompt)[1])
        error = {"error": {"code": "content_filter", "message": "The prompt was filtered."}}
        return echo_writer(asked) if number >= 25 else body(error, 400)

    patience = PatienceSettings(max_retries=1, backoff_s=0.01, max_failures_in_a_row=3)
    documents = write_documents(30)
    with EndpointServer(handler) as server:
        for _ in range(2):
            report = run(server, documents, tmp_path / "out", patience)
            assert (report["pairs"], report["rejected_by_reason"]) == (5, {"content filter": 25})
        assert len(server.asked) == 25 + 10, "nothing is asked again"


def test_a_reply_that_cannot_be_read_counts_against_the_budget(write_documents, impatient, tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text(PRICES)
    picture = [{"type": "image_url", "image_url": {"url": "x"}}]
    unread = rewritten(completion("", usage=(400, 100)), message={"content": picture})
    settings = {
        "prices": str(prices),
        "budget_usd": 20.0,
        "max_concurrency": 1,
        "sampling": SamplingSettings(max_question_tokens=64, max_answer_tokens=64),
    }
    with EndpointServer(lambda asked: unread if "第1" in asked.prompt else echo_writer(asked)) as server:
        run(server, write_documents(20), tmp_path / "out", impatient, **settings)
    ledger = read_json(tmp_path / "out" / "ledger.json")
    assert ledger["replies_unread"] == 11, "one try for each passage: d1 and d10 to d19"
    assert ledger["cost_usd"] == pytest.approx(11 * 0.5 + ledger["requests"] * 0.018)
    settings["budget_usd"] = ledger["cost_usd"] / 2
    with EndpointServer(lambda asked: unread if "第1" in asked.prompt else echo_writer(asked)) as server:
        report = run(server, write_documents(20), tmp_path / "small", impatient, **settings)
    assert report["state"] == "stopped: budget"
    assert read_json(tmp_path / "small" / "ledger.json")["cost_usd"] <= settings["budget_usd"]


def test_content_in_parts_is_read_and_its_thoughts_are_left_out(write_documents, impatient, tmp_path):
    def handler(asked: Asked) -> Reply:
        text = json.loads(echo_writer(asked).body)["choices"][0]["message"]["content"]
        parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "想"}]}, {"type": "text", "text": text}]
        return rewritten(echo_writer(asked), message={"role": "assistant", "content": parts})

    with EndpointServer(handler) as server:
        assert run(server, write_documents(3), tmp_path / "out", impatient)["pairs"] == 3
        assert len(server.asked) == 6


def test_request_options_stand_in_requests_manifest_and_request_key(write_documents, impatient, tmp_path):
    documents, options = write_documents(2), tmp_path / "options.yaml"
    options.write_text(
        "chat_template_kwargs: {enable_thinking: false}\ntemperature: null\nmax_tokens: null\nmax_output_tokens: 99\n"
    )
    with EndpointServer() as server:
        run(server, documents, tmp_path / "out", impatient)
        run(server, documents, tmp_path / "out", impatient, request_options=str(options))
        assert len(server.asked) == 8, "other options are another request"
        payload = server.asked[-1].payload
    assert payload.keys() == {"model", "messages", "chat_template_kwargs", "max_output_tokens"}
    described = read_manifest(tmp_path / "out", "unified")["backend"]["request_options"]
    lines = read_jsonl(tmp_path / "out" / "conversations.jsonl")
    assert {line.record["provenance"]["temperature"] for line in lines} == {None}
    assert described["chat_template_kwargs"] == {"enable_thinking": False} and described["temperature"] is None


def test_a_model_that_refuses_the_temperature_is_told_and_can_be_asked_without(write_documents, impatient, tmp_path):
    def handler(asked: Asked) -> Reply:
        if "temperature" not in asked.payload:
            return echo_writer(asked)
        return body({"error": {"message": "Unsupported value: 'temperature' does not support 0.7 with this model.", "param": "temperature",
                               "code": "unsupported_value"}}, 400)  # fmt: skip

    documents = write_documents(2)
    with EndpointServer(handler) as server:
        with pytest.raises(EndpointError, match="refuses the parameter 'temperature' of every request"):
            run(server, documents, tmp_path / "out", impatient, max_concurrency=1)
        assert len(server.asked) == 1
        sampling = SamplingSettings(temperature=None, token_limit_key="max_completion_tokens")
        assert run(server, documents, tmp_path / "out", impatient, sampling=sampling)["pairs"] == 2
        assert server.asked[-1].payload.keys() == {"model", "messages", "max_completion_tokens"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "wrong request options: got list, need a mapping"),
        ("model: other", "request option 'model' is not free: --model names it"),
        ("n: 4", "request option 'n' is not free"),
        ("api_key: sk-1", "request option 'api_key' looks like a secret"),
        ("x: .nan", "need values that JSON has"),
        ("x: 2026-01-01", "need values that JSON has"),
        ("x: {", "configuration is not YAML"),
        ("max_tokens: null", "a budget needs a limit of tokens in every request: got none"),
        ("max_tokens: many", "a budget needs a limit of tokens in every request: got"),
    ],
)
def test_wrong_request_options_are_refused_before_anything_is_asked(content, message, write_documents, tmp_path):
    options, prices = tmp_path / "options.yaml", tmp_path / "prices.yaml"
    options.write_text(content)
    prices.write_text(PRICES)
    with EndpointServer() as server, pytest.raises(ConfigError, match=message):
        unify([write_documents(1)], tmp_path / "out", backend="openai", base_url=server.base_url, model="m",
              request_options=str(options), prices=str(prices), budget_usd=1.0)  # fmt: skip
    assert not server.asked


SAID = st.sampled_from(
    [
        None, 5, "", "好", [], ["x"], {}, [{"type": "text", "text": "请说明要点是什么？"}], [{"type": "image_url"}],
        "请说明常见症状的要点是什么？", "<think>想", "想</think>请说明要点是什么？", '{"question": "请说明要点是什么？"}', "```\n请说明？\n```", "\ud83d",
    ]
)  # fmt: skip
BODIES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"", b"null", b"[]", b"{}", b'{"choices": null}', b'{"choices": [null]}', b'{"error": "x"}', b'{"error": {"code": 429}}']),
    st.builds(
        lambda said, finish, usage: json.dumps({"choices": [{"finish_reason": finish, "message": {"content": said}}], "usage": usage}).encode(),
        SAID,
        st.sampled_from(["stop", "length", "error", None, "content_filter", 7, {"type": "stop"}]),
        st.sampled_from([None, {}, {"prompt_tokens": 3, "completion_tokens": 4}, {"prompt_tokens": 10**30, "completion_tokens": 1}]),
    ),
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(BODIES, st.sampled_from([200, 200, 200, 400, 500])), min_size=1, max_size=6))
def test_whatever_an_endpoint_says_every_document_is_a_pair_or_counted(tmp_path, said):
    """in = out + counted, and no traceback: d0 is answered well, so that something is left."""
    folder = tmp_path / f"{len(list(tmp_path.iterdir())):04d}"
    folder.mkdir()
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in make_documents(8)), "utf-8")

    def handler(asked: Asked) -> Reply:
        if "第0组" in asked.prompt:
            return echo_writer(asked)
        raw, status = said[asked.number % len(said)]
        return Reply(raw, status)

    patience = PatienceSettings(max_retries=1, backoff_s=0.001, max_wait_s=0.001, max_failures_in_a_row=1000)
    with EndpointServer(handler) as server:
        report = run(server, path, folder / "out", patience)
    rejected = [line.record for line in read_jsonl(folder / "out" / "rejected.jsonl")]
    assert report["documents"] == 8 == report["pairs"] + report["rejected"]
    assert len(turns(folder / "out")) == report["pairs"] and len(rejected) == report["rejected"]
    assert all(row["reason"] for row in rejected) and "think" not in str(turns(folder / "out"))


def test_passages_that_are_too_long_for_the_model_fail_no_endpoint(write_documents, tmp_path):
    error = {
        "error": {"code": 400, "message": "This model's maximum context length is 512 tokens, you requested 2048."}
    }

    def handler(asked: Asked) -> Reply:
        return echo_writer(asked) if "第29组" in asked.prompt else body(error, 400)

    patience = PatienceSettings(max_retries=1, backoff_s=0.01, max_failures_in_a_row=3)
    with EndpointServer(handler) as server:
        report = run(server, write_documents(30), tmp_path / "out", patience)
    assert (report["pairs"], report["rejected_by_reason"]) == (1, {"endpoint failed": 29})
