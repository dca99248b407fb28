"""Open questions answered by a directory and by an endpoint, stopped and resumed, and read by the judges."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.evaluate.free_answers import AnswerSettings, read_open_questions, run_answers
from megatron_huatuo.evaluate.generate import GenerationSettings
from megatron_huatuo.evaluate.judging.answers import read_answers
from megatron_huatuo.storage.manifest import read_manifest, verify_files

ROOT = Path(__file__).parents[3]
CPU = GenerationSettings(device="cpu", max_new_tokens=8)


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    records = [{"id": k, "query": f"感冒第{k}天怎么办？", "label": "内科"} for k in range(4)]
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_directory_answers_and_judges_read_it(model_directory, questions, tmp_path):
    assert run_answers(model_directory, [questions], tmp_path / "out", generation=CPU) == 4
    answers = read_answers(tmp_path / "out" / "answers.jsonl")
    assert [(answer.question, answer.label) for answer in answers.values()] == [
        (f"感冒第{k}天怎么办？", "内科") for k in range(4)
    ]
    manifest = read_manifest(tmp_path / "out", "answers")
    verify_files(tmp_path / "out", manifest)
    assert manifest["settings"] == {
        "seed": None,
        "trust_remote_code": False,
        "max_failed": 0,
        "temperature": None,
    }
    first = (tmp_path / "out" / "answers.jsonl").read_bytes()
    run_answers(model_directory, [questions], tmp_path / "out", generation=CPU)
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == first
    for name in ("one", "two"):
        run_answers(model_directory, [questions], tmp_path / name, AnswerSettings(seed=7), CPU)
    sampled = [(tmp_path / name / "answers.jsonl").read_bytes() for name in ("one", "two")]
    assert sampled[0] == sampled[1] != first
    assert read_manifest(tmp_path / "one", "answers")["settings"]["seed"] == 7


@pytest.mark.slow
def test_an_endpoint_answers_and_only_missing_ones_are_asked_again(endpoint, questions, tmp_path):
    endpoint.reply = lambda prompt, number: f"多休息（{prompt[3]}）"
    command = [sys.executable, "tools/evaluate.py", "answer", "--base-url", endpoint.url, "--model", "m"]
    command += ["--questions", questions, "--output", tmp_path / "out"]
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"4 answers: {tmp_path}/out/answers.jsonl"
    assert len(endpoint.requests) == 4
    assert [answer.text for answer in read_answers(tmp_path / "out" / "answers.jsonl").values()] == [
        f"多休息（{k}）" for k in range(4)
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"no open questions: .*q\.jsonl"),
        ('{"id": 1, "query": " "}', r"blank question: need text under query, prompt or question \(.*q\.jsonl:1\)"),
        ('{"id": 1, "q": "x"}', r"no text under any of query, prompt, question"),
        ('{"query": "x"}', r"wrong value of 'id': got NoneType"),
        ('{"id": 1, "query": "x"}\n{"id": 1, "query": "y"}', r"repeated id: got '1' twice"),
        ("[3]", r"no JSON object: got list"),
    ],
)
def test_bad_questions_are_refused(content, message, tmp_path):
    (tmp_path / "q.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_open_questions([tmp_path / "q.jsonl"])


def test_a_temperature_without_a_seed_is_refused(model_directory, questions, tmp_path):
    settings = GenerationSettings(device="cpu", temperature=0.3)
    with pytest.raises(ConfigError, match=r"--temperature has no effect without --seed: got 0\.3"):
        run_answers(model_directory, [questions], tmp_path / "out", generation=settings)
    assert not (tmp_path / "out").exists()
