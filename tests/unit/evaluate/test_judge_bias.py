"""Scripted judges of known bias behind a real HTTP server: each bias is found, and none is found where there is none."""

import hashlib
import json
import math
from pathlib import Path

import pytest

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.evaluate.generate import EndpointOptions, ModelEndpoint
from megatron_huatuo.evaluate.judging.answers import pair_answers
from megatron_huatuo.evaluate.judging.judge import format_judgement, run_judge
from megatron_huatuo.evaluate.judging.panel import read_judges
from megatron_huatuo.evaluate.judging.preference import fit_length_effect
from megatron_huatuo.llm.endpoint_settings import PatienceSettings

ROOT = Path(__file__).parents[3]
DATA = ROOT.parent / "shared" / "data" / "huatuo100_single_turn"
IMPATIENT = PatienceSettings(request_timeout_s=5.0, max_retries=0, backoff_s=0.01)


def luck(*parts):
    """A number in [0, 1) that is always the same for the same texts."""
    return int.from_bytes(hashlib.sha256("\n".join(parts).encode()).digest()[:7], "big") / 2**56


def bundled(tmp_path):
    """Two files of 100 answers of this project's making, their lengths spread like those of published models."""
    files = []
    for model in "ab":
        answers = []
        for number in range(100):
            sentences = 1 + int(11 * luck(model, str(number)) ** 1.5)
            text = f"第{number}条建议（{model}）：" + "注意休息，按时复诊。" * sentences
            answers.append(
                {
                    "id": number,
                    "label": "用药" if number % 2 else "检查",
                    "query": f"第{number}问？",
                    "model_output": text,
                }
            )
        path = tmp_path / f"{model}.json"
        path.write_text(json.dumps(answers, ensure_ascii=False), encoding="utf-8")
        files.append(path)
    return files


@pytest.fixture(params=["bundled", "published"])
def answers(request, tmp_path):
    """(file of A, file of B)."""
    if request.param == "bundled":
        return bundled(tmp_path)
    if not DATA.is_dir():
        pytest.skip(f"published answers are absent: {DATA} (HuatuoGPT-II repository, evaluation/data/huatuo100_inst)")
    return [DATA / "HuatuoGPT2-7B.json", DATA / "GPT4.json"]


def shown(prompt):
    """(first answer, second answer) of a prompt."""
    first, second = prompt.split("\n[助手2的回答]\n")
    return first.split("[助手1的回答]\n")[1].split("\n[助手1的回答结束]")[0], second.split("\n[助手2的回答结束]")[0]


def judge_by(endpoint, answers, chance_of_a):
    """Run a judge that prefers A with a probability of both lengths, the same in both orders."""
    texts = {a.text.strip() for a, _ in pair_answers(*answers)}

    def reply(prompt, number):
        first, second = shown(prompt)
        a, b = (first, second) if first in texts else (second, first)
        prefers_a = luck(a, b) < chance_of_a(len(a), len(b))
        return "[[1]]" if prefers_a == (first == a) else "[[2]]"

    endpoint.reply = reply
    return ModelEndpoint(endpoint.url, "judge", EndpointOptions(), IMPATIENT)


def run(answers, judge, tmp_path):
    return run_judge(answers_a=answers[0], answers_b=answers[1], judge=judge, output=tmp_path / "out")


@pytest.mark.slow
def test_judge_that_loves_length_is_found_and_says_nothing_at_equal_length(endpoint, answers, tmp_path):
    scores = run(answers, judge_by(endpoint, answers, lambda a, b: 1.0 if a > b else 0.0 if a < b else 0.5), tmp_path)
    assert scores["longer_preferred"] > 0.97 and scores["longer_preferred_interval"][0] > 0.9
    assert scores["odds_ratio_if_twice_as_long_interval"][0] > 5
    low, high = scores["rate_at_equal_length_interval"]
    assert low < 0.5 < high


@pytest.mark.slow
def test_judge_whom_length_leaves_cold_is_not_accused(endpoint, answers, tmp_path):
    pairs = [(a.text.strip(), b.text.strip()) for a, b in pair_answers(*answers)]
    for_a = set(sorted(pairs, key=lambda pair: luck(*pair))[:65])  # 65 of the 100, whatever their lengths

    def reply(prompt, number):
        first, second = shown(prompt)
        return (
            "[[1]]"
            if (first, second) in for_a or ((second, first) in pairs and (second, first) not in for_a)
            else "[[2]]"
        )

    endpoint.reply = reply
    scores = run(answers, ModelEndpoint(endpoint.url, "judge", EndpointOptions(), IMPATIENT), tmp_path)
    assert scores["win_rate_a"] == 0.65
    low, high = scores["odds_ratio_if_twice_as_long_interval"]
    assert low < 1 < high
    for key in ("win_rate_a_interval", "rate_at_equal_length_interval"):
        assert scores[key][0] < 0.65 < scores[key][1]
    assert scores["reversals"] == 0 and scores["position_bias"] == pytest.approx(0.5)


@pytest.mark.slow
def test_skill_is_told_from_length_where_both_decide(endpoint, answers, tmp_path):
    skill, slope = 0.9, 2.0  # log odds that A wins: 0.9 at equal length, 2 more for each factor e in length
    chance = lambda a, b: 1 / (1 + math.exp(-(skill + slope * math.log(a / b))))  # noqa: E731
    scores = run(answers, judge_by(endpoint, answers, chance), tmp_path)
    at_equal, low, high = 1 / (1 + math.exp(-skill)), *scores["rate_at_equal_length_interval"]
    assert low < at_equal < high
    low, high = scores["odds_ratio_if_twice_as_long_interval"]
    assert 1 < low < 2**slope < high


@pytest.mark.slow
def test_judge_that_loves_the_first_answer_is_found(endpoint, answers, tmp_path):
    endpoint.reply = lambda prompt, number: "[[1]]" if luck("order", *shown(prompt)) < 0.9 else "[[2]]"
    judge = ModelEndpoint(endpoint.url, "judge", EndpointOptions(), IMPATIENT)
    scores = run(answers, judge, tmp_path)
    low, high = scores["position_bias_interval"]
    assert low < 0.9 < high and low > 0.75
    assert scores["win_rate_a_interval"][0] < 0.5 < scores["win_rate_a_interval"][1]  # both orders cancel it
    text = format_judgement(scores)
    assert "the answer shown first is preferred" in text and "win rate of A at equal length" in text


@pytest.mark.slow
def test_several_judges_are_counted_apart_and_their_agreement_is_cohens_kappa(endpoint, tmp_path):
    answers = bundled(tmp_path)
    texts = {a.text.strip() for a, _ in pair_answers(*answers)}

    def reply(request):
        first, second = shown(request["messages"][-1]["content"])
        a, b = (first, second) if first in texts else (second, first)
        prefers_a = luck(a, b) < 0.6
        if request["model"] == "contrary" and luck(b, a) < 0.25:
            prefers_a = not prefers_a
        return "[[1]]" if prefers_a == (first == a) else "[[2]]"

    endpoint.answers = reply
    judges = [{"base_url": endpoint.url, "model": name} for name in ("plain", "contrary")]
    (tmp_path / "judges.yaml").write_text(json.dumps(judges))
    scores = run(answers, read_judges(tmp_path / "judges.yaml", IMPATIENT), tmp_path)
    assert scores["pairs"] == 200 and set(scores["by_judge"]) == {"plain", "contrary"}
    (agreement,) = scores["agreement"]
    differ = sum(luck(b.text, a.text) < 0.25 for a, b in pair_answers(*answers))
    assert agreement["equal"] == pytest.approx(1 - differ / 100)
    wins = [scores["by_judge"][name]["wins_a"] / 100 for name in ("plain", "contrary")]
    chance = wins[0] * wins[1] + (1 - wins[0]) * (1 - wins[1])
    assert agreement["kappa"] == pytest.approx((1 - differ / 100 - chance) / (1 - chance))
    assert "agreement of plain and contrary: kappa 0." in format_judgement(scores)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "wrong judges: got dict, need a list"),
        ('[{"model": "m"}]', "wrong judge 1: got"),
        (
            '[{"base_url": "http://x/v1", "model": "m", "key": "s"}]',
            "unknown key 'key' of judge 1: need one of base_url, model",
        ),
    ],
)
def test_wrong_judges_are_named(tmp_path, content, message):
    (tmp_path / "judges.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_judges(tmp_path / "judges.yaml", IMPATIENT)


def test_the_same_judge_twice_is_refused(endpoint, tmp_path):
    judge = ModelEndpoint(endpoint.url, "judge", EndpointOptions(), IMPATIENT)
    with pytest.raises(ConfigError, match="two judges are the same: judge at http"):
        run(bundled(tmp_path), [judge, judge], tmp_path)


def test_fit_recovers_known_coefficients_from_many_pairs():
    pairs = [(100 + int(900 * luck("a", str(k))), 100 + int(900 * luck("b", str(k)))) for k in range(4000)]
    shares = [
        float(luck("w", str(k)) < 1 / (1 + math.exp(-(-0.5 + 1.5 * math.log(a / b))))) for k, (a, b) in enumerate(pairs)
    ]
    effect = fit_length_effect(shares, pairs)
    assert effect.rate_at_equal_length == pytest.approx(1 / (1 + math.exp(0.5)), abs=0.03)
    assert math.log2(effect.odds_ratio_if_twice_as_long) == pytest.approx(1.5, abs=0.15)
