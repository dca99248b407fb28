"""The exam against a real HTTP server on loopback: replies, faults, keys, resume."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from megatron_huatuo.errors import ConfigError, EndpointError
from megatron_huatuo.evaluate.exam import ExamSettings, run_exam
from megatron_huatuo.evaluate.generate import EndpointOptions, GenerationSettings, ModelEndpoint
from megatron_huatuo.llm.endpoint_settings import PatienceSettings

ROOT = Path(__file__).parents[3]
IMPATIENT = PatienceSettings(request_timeout_s=5.0, max_retries=2, backoff_s=0.01, max_wait_s=0.02)
KEY = "sk-canary-0123456789abcdef"


def model_at(endpoint, patience=IMPATIENT, **options):
    return ModelEndpoint(endpoint.url, "m", EndpointOptions(**options), patience)


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def exam(write_questions, tmp_path):
    return [write_questions(tmp_path / "q.jsonl", 10)]


def test_scores_of_known_replies_are_exact(endpoint, exam, tmp_path):
    endpoint.reply = lambda prompt, number: "我不知道" if "第4题" in prompt else "先看B。因此答案是A。"
    scores = run_exam(model=model_at(endpoint), questions=exam, output=tmp_path / "out")
    # Single: q0, q2, q4, q6, q8 with answers A, C, E, B, D; q4 is unparsed. The five others ask for ABE.
    assert (scores["count"], scores["correct"], scores["unparsed"]) == (10, 1, 1)
    single = scores["by_question_type"]["最佳选择题"]
    assert (single["count"], single["correct"], single["unparsed"], single["accuracy"]) == (5, 1, 1, 0.2)
    assert single["chance"] == pytest.approx(1 / 5)
    assert scores["by_question_type"]["多项选择题"]["chance"] == pytest.approx(1 / sum((10, 10, 5, 1)))
    replies = {reply["id"]: reply for reply in read_lines(tmp_path / "out" / "replies.jsonl")}
    assert replies["q4"]["parsed"] is None and not replies["q4"]["correct"]
    assert replies["q0"]["parsed"] == "A" and replies["q0"]["correct"]


def test_request_is_one_user_turn_with_the_recipe_prompt_and_greedy(endpoint, exam, tmp_path):
    run_exam(model=model_at(endpoint), questions=exam, output=tmp_path / "out")
    request = next(request for request in endpoint.requests if "第1题" in request["messages"][0]["content"])
    assert request["messages"] == [
        {
            "role": "user",
            "content": "请回答下面选择题。\n[多项选择题]第1题，有意义的是？\n"
            "A. 腹水\nB. 清蛋白\nC. 血电解质\nD. 肝活检\nE. B超检查",
        }
    ]
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("m", 0.0, 512)


@pytest.mark.slow
def test_rerun_pays_for_nothing_and_other_endpoints_are_asked_anew(endpoint, exam, tmp_path):
    for expected in (10, 10):
        run_exam(model=model_at(endpoint), questions=exam, output=tmp_path / "out")
        assert len(endpoint.requests) == expected
    other = ModelEndpoint(endpoint.url, "other", EndpointOptions(), IMPATIENT)
    run_exam(model=other, questions=exam, output=tmp_path / "out")
    assert len(endpoint.requests) == 20


def test_concurrency_is_bounded_and_used(endpoint, exam, tmp_path):
    def slow(prompt, number):
        time.sleep(0.05)
        return "A"

    endpoint.reply = slow
    run_exam(model=model_at(endpoint, max_concurrency=3), questions=exam, output=tmp_path / "out")
    assert 2 <= endpoint.most_in_flight <= 3


FAULTS = {
    "500 with HTML": (500, b"<html>oops</html>", {"Content-Type": "text/html"}),
    "429 with Retry-After": (429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0.01"}),
    "429 without Retry-After": (429, b'{"error": {"message": "slow down"}}', {}),
    "200 with garbage": (200, b"<html>not json</html>", {"Content-Type": "text/html"}),
    "200 with torn JSON": (200, b'{"choices": [{"mess', {}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_passing_fault_is_retried(endpoint, exam, tmp_path, fault):
    failed = set()

    def reply(prompt, number):
        if prompt not in failed:
            failed.add(prompt)
            return FAULTS[fault]
        return "答案是A"

    endpoint.reply = reply
    scores = run_exam(model=model_at(endpoint), questions=exam, output=tmp_path / "out")
    assert scores["unparsed"] == 0
    assert len(endpoint.requests) == 20


def test_outage_is_missing_and_never_wrong_and_a_rerun_asks_only_for_it(endpoint, exam, tmp_path):
    endpoint.reply = lambda prompt, number: FAULTS["500 with HTML"] if "第3题" in prompt else "答案是A"
    with pytest.raises(EndpointError, match=r"no reply to 1 of 10 prompts.*Run again"):
        run_exam(model=model_at(endpoint), questions=exam, output=tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    scores = json.loads((tmp_path / "out" / "scores.json").read_text("utf-8"))
    assert (scores["complete"], scores["count"], scores["answered"], scores["missing"]) == (False, 10, 9, 1)
    assert scores["unparsed"] == 0 and scores["accuracy"] == scores["correct"] / 9
    missing = [reply for reply in read_lines(tmp_path / "out" / "replies.jsonl") if reply["correct"] is None]
    assert [(reply["id"], reply["parsed"]) for reply in missing] == [("q3", None)]
    assert len(endpoint.requests) == 9 + 3  # one try and two more for question 3
    endpoint.reply = lambda prompt, number: "答案是ABE"
    scores = run_exam(model=model_at(endpoint), questions=exam, output=tmp_path / "out")
    assert len(endpoint.requests) == 13
    assert scores["complete"] and scores["by_question_type"]["多项选择题"]["correct"] == 1


def test_allowed_failure_is_missing_in_the_score(endpoint, exam, tmp_path):
    endpoint.reply = lambda prompt, number: (400, b'{"error": {"message": "no"}}', {}) if "第3题" in prompt else "A"
    settings = ExamSettings(max_failed=1)
    scores = run_exam(model=model_at(endpoint), questions=exam, output=tmp_path / "out", settings=settings)
    assert (scores["missing"], scores["unparsed"]) == (1, 0)
    assert len(endpoint.requests) == 10
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["failed"] == 1


def test_votes_ask_with_recorded_seeds_and_the_most_frequent_answer_counts(endpoint, exam, tmp_path):
    replies = {7: "答案是A", 8: "答案是C", 9: "答案是C", 10: "我不知道"}
    endpoint.answers = lambda request: replies[request["seed"]]
    settings = ExamSettings(votes=4, seed=7, subset=("最佳选择题",))
    scores = run_exam(model_at(endpoint), exam, tmp_path / "out", settings, GenerationSettings(temperature=0.5))
    assert len(endpoint.requests) == 5 * 4
    assert {(request["temperature"], request["seed"]) for request in endpoint.requests} == {(0.5, s) for s in replies}
    for reply in read_lines(tmp_path / "out" / "replies.jsonl"):
        assert (reply["parsed"], reply["reply"]) == ("C", "答案是C")
        assert [(vote["seed"], vote["parsed"]) for vote in reply["votes"]] == [(7, "A"), (8, "C"), (9, "C"), (10, None)]
    assert scores["asked_with"]["vote_seeds"] == [7, 8, 9, 10] and scores["correct"] == 1
    run_exam(model_at(endpoint), exam, tmp_path / "out", settings, GenerationSettings(temperature=0.5))
    assert len(endpoint.requests) == 20


def test_request_options_are_sent_and_recorded_and_part_of_the_key(endpoint, exam, tmp_path):
    (tmp_path / "options.yaml").write_text("temperature: null\nchat_template_kwargs: {enable_thinking: false}\n")
    options = {"request_options": str(tmp_path / "options.yaml")}
    scores = run_exam(model_at(endpoint, **options), exam, tmp_path / "out")
    request = endpoint.requests[0]
    assert "temperature" not in request and request["chat_template_kwargs"] == {"enable_thinking": False}
    expected = {"temperature": None, "chat_template_kwargs": {"enable_thinking": False}}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    assert scores["asked_with"]["request_options"] == manifest["model"]["request_options"] == expected
    run_exam(model_at(endpoint), exam, tmp_path / "out")
    assert len(endpoint.requests) == 20 and endpoint.requests[-1]["temperature"] == 0


def test_among_equally_frequent_answers_the_first_counts_and_silence_never_wins(endpoint, exam, tmp_path):
    replies = {0: "我不知道", 1: "答案是D", 2: "答案是B", 3: "我不知道"}
    endpoint.answers = lambda request: replies[request["seed"]]
    settings = ExamSettings(votes=4, subset=("最佳选择题",))
    run_exam(model_at(endpoint), exam, tmp_path / "out", settings)
    assert {reply["parsed"] for reply in read_lines(tmp_path / "out" / "replies.jsonl")} == {"D"}


def test_replies_in_flight_are_kept_when_the_endpoint_refuses(endpoint, exam, tmp_path):
    refused = threading.Event()

    def reply(prompt, number):
        if "第5题" in prompt:
            refused.set()
            return 401, b'{"error": {"message": "bad key"}}', {}
        if refused.wait(timeout=5):
            time.sleep(0.2)
        return "A"

    endpoint.reply = reply
    with pytest.raises(EndpointError, match="401"):
        run_exam(model=model_at(endpoint, max_concurrency=10), questions=exam, output=tmp_path / "out")
    assert len(endpoint.requests) == 10
    endpoint.reply = lambda prompt, number: "A"
    run_exam(model=model_at(endpoint), questions=exam, output=tmp_path / "out")
    assert len(endpoint.requests) == 11  # nine were paid before, and are not paid again


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, b'{"error": {"message": "bad key"}}'),
        (403, b'{"error": {"message": "forbidden"}}'),
        (429, b'{"error": {"message": "no money", "code": "insufficient_quota"}}'),
    ],
)
def test_refusal_and_quota_are_not_retried(endpoint, exam, tmp_path, status, body):
    endpoint.reply = lambda prompt, number: (status, body, {})
    with pytest.raises(EndpointError, match=str(status)):
        run_exam(model=model_at(endpoint, max_concurrency=1), questions=exam, output=tmp_path / "out")
    assert len(endpoint.requests) == 1


def test_reply_cut_off_by_length_is_counted(endpoint, exam, tmp_path):
    endpoint.finish_reason = "length"
    endpoint.reply = lambda prompt, number: "先看腹水，再看清蛋白，"
    scores = run_exam(model=model_at(endpoint), questions=exam, output=tmp_path / "out")
    assert (scores["cut_off"], scores["unparsed"]) == (10, 10)


def test_endpoint_that_nobody_serves_fails_in_bounded_time(exam, tmp_path):
    nobody = ModelEndpoint("http://127.0.0.1:9/v1", "m", EndpointOptions(), IMPATIENT)
    with pytest.raises(EndpointError, match=r"no server at http://127\.0\.0\.1:9/v1"):
        run_exam(model=nobody, questions=exam, output=tmp_path / "out")


def run_tool(endpoint, exam, output, *more, **environment):
    command = [sys.executable, "tools/evaluate.py", "exam", "--base-url", endpoint.url, "--model", "m"]
    command += ["--questions", *exam, "--output", output, "--backoff-s", "0.01", "--max-retries", "1", *more]
    return command, {**os.environ, **environment}


@pytest.mark.slow
def test_key_comes_from_the_environment_and_stands_in_no_output(endpoint, exam, tmp_path):
    def echo(prompt, number):
        if number == 0:
            return 500, json.dumps({"error": {"message": f"bad {KEY}"}}).encode(), {}
        return f"答案是A，钥匙是{KEY}"

    endpoint.reply = echo
    command, environment = run_tool(endpoint, exam, tmp_path / "out", "--api-key-env", "CANARY_KEY", CANARY_KEY=KEY)
    good = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60)
    assert good.returncode == 0, good.stderr.decode()
    assert endpoint.keys[0] == f"Bearer {KEY}"
    endpoint.reply = lambda prompt, number: (401, json.dumps({"error": {"message": f"bad key {KEY}"}}).encode(), {})
    command, environment = run_tool(endpoint, exam, tmp_path / "bad", "--api-key-env", "CANARY_KEY", CANARY_KEY=KEY)
    bad = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60)
    assert bad.returncode == 1
    assert bad.stderr.decode().splitlines()[-1].startswith("error: ")
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for text in [*written, good.stdout, good.stderr, bad.stdout, bad.stderr]:
        assert KEY.encode() not in text


@pytest.mark.slow
def test_kill_9_then_the_same_command_pays_only_for_what_is_missing(endpoint, exam, tmp_path):
    answered = threading.Semaphore(0)

    def slow(prompt, number):
        answered.release()
        time.sleep(0.15)
        return "答案是A"

    endpoint.reply = slow
    command, environment = run_tool(endpoint, exam, tmp_path / "out", "--max-concurrency", "1")
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    for _ in range(4):
        assert answered.acquire(timeout=30)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "manifest.json").exists()
    paid = len(endpoint.requests)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    assert len(endpoint.requests) - paid <= 10 - 3  # three replies were complete; one was in flight
    assert len(set(endpoint.prompts)) == 10
    assert len(read_lines(tmp_path / "out" / "replies.jsonl")) == 10


def test_endpoint_mode_imports_neither_torch_nor_transformers():
    code = (
        "import sys; import megatron_huatuo.evaluate.exam, megatron_huatuo.evaluate.judging.judge\n"
        "import megatron_huatuo.evaluate.answering.endpoint\n"
        "assert not {'torch', 'transformers', 'megatron.core'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_wrong_settings_are_refused(endpoint, exam, tmp_path, monkeypatch):
    monkeypatch.delenv("ABSENT_KEY", raising=False)
    with pytest.raises(ConfigError, match="no API key: the environment variable ABSENT_KEY is empty"):
        run_exam(model=model_at(endpoint, api_key_env="ABSENT_KEY"), questions=exam, output=tmp_path / "out")
    with pytest.raises(ConfigError, match="wrong token_limit_key: got 'tokens'"):
        EndpointOptions(token_limit_key="tokens")
    with pytest.raises(ConfigError, match="needs a Hugging Face directory: endpoints do not tell"):
        run_exam(model_at(endpoint), exam, tmp_path / "out", ExamSettings(scoring="loglikelihood"))
    for wrong, message in (
        ({"votes": 0}, "wrong votes: got 0"),
        ({"few_shot_from": ("x",)}, "--few-shot-from has no effect without --few-shot"),
        ({"scoring": "guess"}, "wrong scoring: got 'guess', need one of generation, loglikelihood"),
        ({"scoring": "loglikelihood", "votes": 3}, "--votes has no effect with --scoring loglikelihood: got 3"),
        ({"normalise": "token"}, "--normalise has no effect with --scoring generation: got 'token'"),
        ({"format": "sat"}, "unknown exam format: got 'sat', need auto, "),
    ):
        with pytest.raises(ConfigError, match=message):
            ExamSettings(**wrong)
    with pytest.raises(ConfigError, match="--trust-remote-code has no effect"):
        run_exam(
            model=model_at(endpoint),
            questions=exam,
            output=tmp_path / "out",
            settings=ExamSettings(trust_remote_code=True),
        )
    with pytest.raises(ConfigError, match="user, password or query"):
        model = ModelEndpoint("http://user:secret@127.0.0.1/v1", "m")
        run_exam(model=model, questions=exam, output=tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--api-key-env", "SOME_KEY"], "--api-key-env has no effect without --base-url: got 'SOME_KEY'"),
        (["--max-retries", "1"], "--max-retries has no effect without --base-url: got 1"),
        (["--base-url", "http://127.0.0.1:9/v1", "--device", "cpu"], "--device has no effect with --base-url"),
    ],
)
def test_flag_that_would_be_ignored_is_refused(exam, tmp_path, flags, message):
    command = [sys.executable, "tools/evaluate.py", "exam", "--model", tmp_path, "--questions", *exam]
    result = subprocess.run([*command, "--output", tmp_path / "out", *flags], cwd=ROOT, capture_output=True)
    assert result.returncode == 1
    assert message in result.stderr.decode()
