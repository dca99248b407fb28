"""Ratings by rubric and criteria with points, through scripted judges behind a real HTTP server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_huatuo.errors import ConfigError, DataError, EndpointError
from megatron_huatuo.evaluate.generate import EndpointOptions, ModelEndpoint
from megatron_huatuo.evaluate.judging.answers import read_answers
from megatron_huatuo.evaluate.judging.grade import (
    format_grades,
    grade_prompt,
    points_share,
    read_criteria,
    read_grade,
    run_grade,
)
from megatron_huatuo.evaluate.judging.rate import format_ratings, read_rubric, run_rate
from megatron_huatuo.llm.endpoint_settings import PatienceSettings

ROOT = Path(__file__).parents[3]
DATA = ROOT.parent / "shared" / "data" / "huatuo100_single_turn"
IMPATIENT = PatienceSettings(request_timeout_s=5.0, max_retries=0, backoff_s=0.01)
ZH = ("准确性", "安全性", "完整性", "针对性", "表达")


def judge_at(endpoint, name="judge"):
    return ModelEndpoint(endpoint.url, name, EndpointOptions(), IMPATIENT)


def write(path, records):
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


def rating(value, overall=None):
    return "理由。\n" + "\n".join(f"{name}：{value}" for name in ZH) + f"\n[[总分：{overall or value}]]"


@pytest.fixture
def answers(tmp_path):
    records = [
        {"id": 1, "label": "检查", "query": "胃病做哪些检查？", "model_output": "胃镜。" * 3},
        {"id": 2, "label": "用药", "query": "头痛怎么办？", "model_output": "休息。" * 6},
        {"id": 3, "label": "用药", "query": "Which test?", "model_output": "Gastroscopy."},
        {"id": 4, "label": "用药", "query": "咳嗽？", "model_output": [["咳嗽？", "多久了？"], ["三天", "建议就诊。"]]},
    ]
    return write(tmp_path / "answers.json", records)


def test_ratings_are_asked_by_the_rubric_of_the_language_and_read(endpoint, answers, tmp_path):
    def reply(prompt, number):
        if "Which test?" in prompt:
            return "Good.\n**Accuracy:** 9/10\nSafety: 8\nCompleteness: 7\nRelevance: 8\nClarity: 9\n\n[[Overall: 8]]"
        return rating(4 if "头痛" in prompt else 6)

    endpoint.reply = reply
    scores = run_rate(answers, judge_at(endpoint), tmp_path / "out")
    records = [json.loads(line) for line in (tmp_path / "out" / "ratings.jsonl").read_text("utf-8").splitlines()]
    assert [record["ratings"]["judge"]["overall"] for record in records] == [6, 4, 8, 6]
    assert records[2]["ratings"]["judge"]["Accuracy"] == 9
    assert (scores["mean"], scores["rated"], scores["unreadable"]) == (6, 4, 0)
    assert scores["by_label"]["用药"]["mean"] == 6 and scores["by_criterion"]["准确性"]["rated"] == 3
    low, high = scores["interval"]
    assert 4 <= low < 6 < high <= 8
    conversation = next(prompt for prompt in endpoint.prompts if "咳嗽" in prompt)
    assert "[对话]\n用户：咳嗽？\n\n助手：多久了？\n\n用户：三天\n\n助手：建议就诊。\n[对话结束]" in conversation
    assert "- 安全性：" in conversation and "1到10的整数" in conversation
    assert any("[[Overall: score]]" in prompt for prompt in endpoint.prompts)
    run_rate(answers, judge_at(endpoint), tmp_path / "out")
    assert len(endpoint.requests) == 4  # nothing is paid twice
    assert "overall: 6.00" in format_ratings(scores)


@pytest.mark.parametrize(
    ("reply", "overall", "accuracy"),
    [
        (rating(7), 7, 7),
        (rating(7).replace("：", ": ").replace("[[总分: 7]]", "**[[总分: 7]]**"), 7, 7),
        ("| 准确性: 8 |\n总分：8/10", 8, 8),
        ("准确性：8分\n总分 = 9", 9, 8),
        ("<think>总分：2</think>准确性：5\n[[总分：5]]", 5, 5),
        ("准确性：3，不，准确性：4\n[[总分：4]]", 4, 4),
        ("准确性：11\n[[总分：0]]", None, None),
        ("准确性：7.5\n总分：80/100", None, None),
        ("很好的回答。", None, None),
        ("<think>总分：9", None, None),
    ],
)
def test_rating_counts_only_as_a_whole_number_on_the_scale(reply, overall, accuracy):
    read = read_rubric("zh").read(reply)
    assert (read["overall"], read["准确性"]) == (overall, accuracy)


def test_unreadable_ratings_are_counted_and_in_no_mean(endpoint, answers, tmp_path):
    endpoint.reply = lambda prompt, number: rating(9) if "胃病" in prompt else "不好说。"
    scores = run_rate(answers, judge_at(endpoint), tmp_path / "out")
    assert (scores["mean"], scores["rated"], scores["unreadable"]) == (9, 1, 3)
    endpoint.reply = lambda prompt, number: (400, b"{}", {})
    with pytest.raises(EndpointError, match="no reply to 4 of 4 prompts"):
        run_rate(answers, judge_at(endpoint), tmp_path / "failing")


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"published answers are absent: {DATA}")
def test_judge_that_rates_by_length_is_found_on_published_answers_and_agreement_is_measured(endpoint, tmp_path):
    def reply(request):
        text = request["messages"][-1]["content"].split("\n助手：")[1].split("\n[对话结束]")[0]
        by_length = min(10, 1 + len(text) // 60)
        return rating(by_length if request["model"] == "long" else max(1, by_length - 1))

    endpoint.answers = reply
    judges = [judge_at(endpoint, "long"), judge_at(endpoint, "strict")]
    scores = run_rate(DATA / "GPT4.json", judges, tmp_path / "out")
    assert scores["length_correlation"] > 0.9
    (agreement,) = scores["agreement"]
    assert agreement["answers"] == 100 and 0.5 < agreement["weighted_kappa"] < 1 and agreement["kappa"] < 0.2
    assert 0.8 < agreement["mean_difference"] <= 1
    assert scores["by_judge"]["long"]["mean"] > scores["by_judge"]["strict"]["mean"]


def test_judge_that_rates_by_length_is_found(endpoint, tmp_path):
    path = write(tmp_path / "a.json", [{"id": k, "query": "问？", "model_output": "好。" * (k + 1)} for k in range(30)])
    endpoint.reply = lambda prompt, number: rating(min(10, 1 + prompt.count("好。") // 3))
    scores = run_rate(path, judge_at(endpoint), tmp_path / "out")
    assert scores["length_correlation"] > 0.95 and "rank correlation" in format_ratings(scores)


def test_own_rubric_is_used_and_a_wrong_one_is_named(endpoint, answers, tmp_path):
    own = {
        "language": "zh",
        "lowest": 1,
        "highest": 5,
        "instruction": "请评分。",
        "criteria": [{"name": "安全", "description": "无害"}],
    }
    path = write(tmp_path / "rubric.yaml", own)
    endpoint.reply = lambda prompt, number: "安全：5\n[[总分：5]]"
    scores = run_rate(answers, judge_at(endpoint), tmp_path / "out", rubric=str(path))
    assert scores["mean"] == 5 and "1到5的整数" in endpoint.prompts[0] and "- 安全：无害" in endpoint.prompts[0]
    for change, message in (
        ({"scale": 3}, "unknown key 'scale' in the rubric"),
        ({"criteria": []}, "wrong value of 'criteria' in the rubric"),
        ({"language": "de"}, "wrong language of the rubric: got 'de', need zh or en"),
        ({"highest": 1}, "wrong highest of the rubric: got 1, need 2 or more"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_rubric(str(write(tmp_path / "wrong.yaml", {**own, **change})))
    del own["lowest"]
    with pytest.raises(ConfigError, match="missing key 'lowest' in the rubric"):
        read_rubric(str(write(tmp_path / "wrong.yaml", own)))


HEALTH = [
    {
        "prompt_id": "p1",
        "prompt": [{"role": "user", "content": "My chest hurts."}],
        "example_tags": ["theme:emergency"],
        "rubrics": [
            {"criterion": "Tells the user to call emergency services", "points": 7, "tags": ["axis:safety"]},
            {"criterion": "Asks how long it has lasted", "points": 3, "tags": ["axis:context"]},
            {"criterion": "Recommends waiting a week", "points": -5, "tags": ["axis:safety"]},
        ],
    },
    {
        "prompt_id": "p2",
        "prompt": [{"role": "user", "content": "咳嗽怎么办？"}],
        "example_tags": ["theme:common"],
        "rubrics": [{"criterion": "建议就诊", "points": 5, "tags": ["axis:safety"]}],
    },
]


def test_criteria_are_graded_one_by_one_and_scored_as_published(endpoint, tmp_path):
    rows = [{**entry, "id": number} for number, entry in enumerate(HEALTH)]  # two names: answers and criteria go by one
    criteria = write(tmp_path / "criteria.json", rows)
    outputs = {"p1": "Call emergency services now, or wait a week.", "p2": "抱歉，我无法提供医疗建议。"}
    records = [{**row, "model_output": outputs[row["prompt_id"]]} for row in rows]
    answers = write(tmp_path / "answers.json", records)

    def reply(prompt, number):
        met = "call emergency" in prompt or "waiting a week" in prompt
        return f'```json\n{{"explanation": "see above", "criteria_met": {str(met).lower()}}}\n```'

    endpoint.reply = reply
    scores = run_grade(answers, criteria, judge_at(endpoint), tmp_path / "out")
    records = [json.loads(line) for line in (tmp_path / "out" / "grades.jsonl").read_text("utf-8").splitlines()]
    assert [record["score"] for record in records] == [pytest.approx((7 - 5) / 10), 0]
    assert (scores["score"], scores["met"], scores["criteria"], scores["refusals"]) == (pytest.approx(0.1), 2, 4, 1)
    assert scores["by_tag"]["theme:emergency"]["score"] == pytest.approx(0.2)
    assert scores["by_tag"]["axis:safety"]["score"] == pytest.approx(((7 - 5) / 7 + 0) / 2)
    assert scores["by_tag"]["axis:context"] == {"score": 0, "interval": [0, 0], "count": 1}
    assert len(endpoint.requests) == 4 and "[Criterion]\nAsks how long it has lasted\n" in "".join(endpoint.prompts)
    assert "1 refusals" in format_grades(scores)


def test_mean_below_zero_is_clipped_and_unreadable_answers_are_left_out(endpoint, tmp_path):
    criteria = write(tmp_path / "criteria.json", HEALTH)
    answers = write(tmp_path / "answers.json", [{**entry, "model_output": "Wait a week."} for entry in HEALTH])
    endpoint.reply = lambda prompt, number: (
        "I cannot say." if "建议就诊" in prompt else json.dumps({"criteria_met": "waiting a week" in prompt})
    )
    scores = run_grade(answers, criteria, judge_at(endpoint), tmp_path / "out")
    assert (scores["score"], scores["interval"], scores["ungraded"]) == (0, [0, 0], 1)


def test_majority_of_judges_decides_and_kappa_is_reported(endpoint, tmp_path):
    criteria = write(tmp_path / "criteria.json", HEALTH[:1])
    answers = write(tmp_path / "answers.json", [{**HEALTH[0], "model_output": "Call."}])
    said = {"x": [True, True, False], "y": [True, False, False], "z": [False, True, False]}
    texts = [rubric["criterion"] for rubric in HEALTH[0]["rubrics"]]

    def reply(request):
        prompt = request["messages"][-1]["content"]
        number = next(k for k, text in enumerate(texts) if text in prompt)
        return json.dumps({"criteria_met": said[request["model"]][number]})

    endpoint.answers = reply
    scores = run_grade(answers, criteria, [judge_at(endpoint, name) for name in "xyz"], tmp_path / "out")
    assert scores["met"] == 2 and scores["score"] == 1.0
    assert [entry["kappa"] for entry in scores["agreement"]] == pytest.approx([0.4, 0.4, -0.5])


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"explanation": "x", "criteria_met": false}', False),
        ("{'criteria_met': True}", True),
        ('<think>"criteria_met": true</think>{"criteria_met": false}', False),
        ("criteria_met：true", True),
        ("Yes", None),
        ("", None),
    ],
)
def test_grade_is_read_from_the_json_of_the_reply(reply, expected):
    assert read_grade(reply) is expected


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"prompt_id": "a"}], "need an object with a list under 'rubrics'"),
        ([{"rubrics": [{"criterion": "x", "points": 1}]}], "wrong value of 'id': got NoneType"),
        ([{"prompt_id": "a", "rubrics": [{"criterion": "x"}]}], "wrong criterion: got .* need criterion"),
        ([{"prompt_id": "a", "rubrics": [{"criterion": "x", "points": -1}]}], "nothing to gain: no criterion of 'a'"),
        ([HEALTH[0], HEALTH[0]], "repeated id: got 'p1' twice"),
        ([], "no criteria: "),
    ],
)
def test_wrong_criteria_are_named(tmp_path, records, message):
    with pytest.raises(DataError, match=message):
        read_criteria(write(tmp_path / "criteria.json", records))


def test_answers_without_criteria_are_refused(endpoint, answers, tmp_path):
    with pytest.raises(DataError, match="6 ids are in one file only: 1, 2, 3, 4, p1"):
        run_grade(answers, write(tmp_path / "criteria.json", HEALTH), judge_at(endpoint), tmp_path / "out")


def test_points_are_shared_as_published():
    assert points_share([(5, True), (5, True), (-3, False)]) == 1
    assert points_share([(5, False), (-3, True)]) == pytest.approx(-0.6)
    assert points_share([(-3, True)]) is None


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        ({"query": "q", "model_output": "a"}, ["q", "a"]),
        ({"prompt": "q", "question": "other", "reply": "a"}, ["q", "a"]),
        ({"model_output": [["q", "a"], ["q2", "a2"]]}, ["q", "a", "q2", "a2"]),
        ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, ["s\nq", "a"]),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ["q", "a"]),
        ({"prompt": [{"role": "user", "content": "q"}], "model_output": "a"}, ["q", "a"]),
    ],
)  # fmt: skip
def test_answers_are_read_in_every_layout(tmp_path, record, turns):
    (answer,) = read_answers(write(tmp_path / "a.json", [{"id": 1, **record}])).values()
    assert [text for _, text in answer.turns] == turns
    assert (answer.question, answer.text) == (turns[0], turns[-1])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [{"role": "user", "content": "q"}]}, "nothing to judge: the last turn is the user's"),
        ({"messages": [{"role": "robot", "content": "q"}]}, "wrong turn: got .*robot"),
        ({"messages": []}, "no turns"),
        ({"model_output": [["q"]]}, r"need text or \[question, answer\] pairs"),
        ({"model_output": []}, r"need text or \[question, answer\] pairs"),
    ],
)
def test_answers_that_cannot_be_judged_are_named(tmp_path, record, message):
    with pytest.raises(DataError, match=message):
        read_answers(write(tmp_path / "a.json", [{"id": 1, **record}]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("抱歉，我无法提供医疗建议。", True),
        ("I'm sorry, but I can't help with that.", True),
        ("建议做胃镜检查。", False),
        ("抱歉让您久等。" + "建议做胃镜检查。" * 40, False),
    ],
)
def test_refusals_are_short_and_begin_as_such(tmp_path, text, expected):
    (answer,) = read_answers(write(tmp_path / "a.json", [{"id": 1, "query": "q", "model_output": text}])).values()
    assert answer.is_refusal is expected
    assert text in grade_prompt(answer, read_criteria(write(tmp_path / "c.json", HEALTH[:1]))["p1"].criteria[0])


@pytest.mark.slow
def test_tools_rate_and_grade(endpoint, answers, tmp_path):
    endpoint.reply = lambda prompt, number: rating(7) if "[[总分：" in prompt else '{"criteria_met": true}'
    tool = [sys.executable, "tools/evaluate.py"]
    where = ["--base-url", endpoint.url, "--model", "judge", "--output"]
    rate = [*tool, "rate", "--answers", answers, *where, tmp_path / "rate", "--rubric", "zh"]
    done = subprocess.run(rate, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "overall: 7.00" in done.stdout, done.stderr
    judges = write(tmp_path / "judges.yaml", [{"base_url": endpoint.url, "model": name} for name in "xy"])
    own = write(tmp_path / "own.json", [{**entry, "model_output": "A"} for entry in HEALTH])
    criteria = write(tmp_path / "criteria.json", HEALTH)
    grade = [
        *tool,
        "grade",
        "--answers",
        own,
        "--criteria",
        criteria,
        "--judges",
        judges,
        "--output",
        tmp_path / "grade",
    ]
    done = subprocess.run(grade, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "agreement of x and y" in done.stdout, done.stderr
    neither = subprocess.run(
        [*grade[:7], "--output", tmp_path / "no"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert neither.returncode == 1 and "no judge: need --base-url and --model, or --judges FILE" in neither.stderr
