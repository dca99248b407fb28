"""Pairwise judging against a real HTTP server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_huatuo.errors import DataError, EndpointError
from megatron_huatuo.evaluate.generate import EndpointOptions, ModelEndpoint
from megatron_huatuo.evaluate.judging.answers import pair_answers, read_answers
from megatron_huatuo.evaluate.judging.judge import run_judge
from megatron_huatuo.llm.endpoint_settings import PatienceSettings

ROOT = Path(__file__).parents[3]
DATA = ROOT.parent / "shared" / "data" / "huatuo100_single_turn"
IMPATIENT = PatienceSettings(request_timeout_s=5.0, max_retries=1, backoff_s=0.01)


def judge_at(endpoint):
    return ModelEndpoint(endpoint.url, "judge", EndpointOptions(), IMPATIENT)


def write_answers(path, answers):
    records = [
        {"id": name, "label": "就医建议", "query": f"问题{name}？", "model_output": text}
        for name, text in answers.items()
    ]
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


def prefer(prompt, number):
    """A judge that prefers GOOD to FAIR and FAIR to POOR, calls equal words a tie, and loves what comes FIRST."""
    first, second = prompt.split("[助手2的回答]")
    rank = [
        next((value for value, word in enumerate(("POOR", "FAIR", "GOOD")) if word in part), 0)
        for part in (first, second)
    ]
    if "FIRST" in prompt:
        return "[[1]]"
    return "[[tie]]" if rank[0] == rank[1] else "[[1]]" if rank[0] > rank[1] else "[[2]]"


@pytest.fixture
def answers(tmp_path):
    a = write_answers(tmp_path / "a.json", {"1": "GOOD", "2": "FAIR", "3": "POOR", "4": "FIRST", "5": "GOOD"})
    b = write_answers(tmp_path / "b.json", {"5": "UNREADABLE", "4": "FIRST", "3": "GOOD", "2": "FAIR", "1": "POOR"})
    return {"answers_a": a, "answers_b": b}


def test_points_of_both_orders_are_summed(endpoint, answers, tmp_path):
    endpoint.reply = lambda prompt, number: "…" if "UNREADABLE" in prompt else prefer(prompt, number)
    scores = run_judge(**answers, judge=judge_at(endpoint), output=tmp_path / "out")
    records = [json.loads(line) for line in (tmp_path / "out" / "verdicts.jsonl").read_text("utf-8").splitlines()]
    assert [(r["id"], r["score_a"], r["score_b"], r["winner"]) for r in records] == [
        ("1", 20, 0, "a"),
        ("2", 10, 10, "tie"),
        ("3", 0, 20, "b"),
        ("4", 10, 10, "tie"),
        ("5", None, None, None),
    ]
    expected = {"pairs": 5, "wins_a": 1, "ties": 2, "wins_b": 1, "score_a": 40, "score_b": 40}
    expected |= {"disagreements": 1, "reversals": 1, "first_preferred": 4, "second_preferred": 2, "unreadable": 1}
    assert {key: scores[key] for key in expected} == expected
    assert scores["by_label"]["就医建议"]["pairs"] == 5
    assert scores == json.loads((tmp_path / "out" / "scores.json").read_text("utf-8"))
    assert len(endpoint.requests) == 8  # equal answers make equal requests in both orders: asked once


def test_rerun_pays_only_for_what_is_missing(endpoint, answers, tmp_path):
    endpoint.reply = lambda prompt, number: (500, b"", {}) if "问题3" in prompt else prefer(prompt, number)
    with pytest.raises(EndpointError, match="no reply to 2 of 8"):
        run_judge(**answers, judge=judge_at(endpoint), output=tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    paid = len(endpoint.requests)
    endpoint.reply = prefer
    run_judge(**answers, judge=judge_at(endpoint), output=tmp_path / "out")
    assert len(endpoint.requests) == paid + 2
    run_judge(**answers, judge=judge_at(endpoint), output=tmp_path / "out")
    assert len(endpoint.requests) == paid + 2


@pytest.mark.slow
def test_tool_judges_our_replies_against_published_layout(endpoint, tmp_path):
    ours = [{"id": "1", "question_type": None, "reply": "GOOD", "answer": "A", "prompt": "问题1？"}]
    (tmp_path / "replies.jsonl").write_text(json.dumps(ours[0], ensure_ascii=False) + "\n", encoding="utf-8")
    theirs = write_answers(tmp_path / "b.json", {"1": "POOR"})
    endpoint.reply = prefer
    command = [sys.executable, "tools/evaluate.py", "judge", "--answers-a", tmp_path / "replies.jsonl"]
    command += ["--answers-b", theirs, "--base-url", endpoint.url, "--model", "judge", "--output", tmp_path / "out"]
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, "LC_ALL": "C"}, capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr.decode()
    assert "A wins 1, ties 0, B wins 0 of 1 pairs" in result.stdout.decode()


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"published answers are absent: {DATA}")
def test_published_answers_are_paired_by_id_and_judged(endpoint, tmp_path):
    files = {"answers_a": DATA / "HuatuoGPT2-7B.json", "answers_b": DATA / "GPT4.json"}
    longest = {a.id: 1 if len(a.text) > len(b.text) else 2 for a, b in pair_answers(*files.values())}

    def longer(prompt, number):
        first, second = prompt.split("[助手2的回答]\n")
        first = first.split("[助手1的回答]\n")[1].split("\n[助手1的回答结束]")[0]
        second = second.split("\n[助手2的回答结束]")[0]
        return "[[1]]" if len(first) > len(second) else "[[2]]"

    endpoint.reply = longer
    scores = run_judge(**files, judge=judge_at(endpoint), output=tmp_path / "out")
    assert scores["pairs"] == 100
    assert len(endpoint.requests) == 200
    assert abs(scores["wins_a"] - list(longest.values()).count(1)) <= 1  # equal lengths after trimming
    assert scores["unreadable"] == 0


def test_files_that_do_not_match_are_refused(tmp_path):
    a = write_answers(tmp_path / "a.json", {"1": "x", "2": "y"})
    b = write_answers(tmp_path / "b.json", {"1": "x"})
    with pytest.raises(DataError, match="1 ids are in one file only: 2"):
        pair_answers(a, b)
    other = tmp_path / "c.json"
    other.write_text(json.dumps([{"id": "1", "query": "another", "model_output": "x"}]), encoding="utf-8")
    with pytest.raises(DataError, match="different questions under id '1'"):
        pair_answers(b, other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no answers"),
        ([{"id": "1", "query": "q", "model_output": "a"}] * 2, "repeated id: got '1' twice"),
        ([{"id": "1", "query": "q"}], "no text under any of model_output"),
        ([{"query": "q", "model_output": "a"}], "wrong value of 'id': got NoneType"),
        (["text"], "wrong record: got str"),
    ],
)
def test_bad_answers_are_named(tmp_path, content, message):
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_answers(tmp_path / "a.json")
