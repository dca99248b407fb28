"""The quality score: what it tells apart, a user's own model, the threshold with its preview, and its way into provenance."""

from __future__ import annotations

import json

import pytest

from megatron_huatuo.corpus import CurationSettings, curate, preview_scores
from megatron_huatuo.corpus.lexicon import Lexicon
from megatron_huatuo.corpus.passage_score import FEATURES, ScoreModel, measure_features
from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.storage.jsonl import read_jsonl
from megatron_huatuo.unify import unify

GOOD = {
    "zh": [
        "高血压患者应减少食盐摄入，控制体重，并遵医嘱长期服药。血压应每日测量，并记录下来。",
        "阿司匹林通过抑制环氧化酶减少血栓素的生成，常用剂量为每日75至100毫克，活动性出血者禁用。",
        "患者，男，五十岁，反复上腹痛三年，餐后加重，胃镜见胃角溃疡，幽门螺杆菌阳性，应予根除治疗。",
        "糖尿病是以高血糖为特征的代谢性疾病。典型症状为多饮、多尿和体重下降，诊断依据为空腹血糖。",
    ],
    "en": [
        "Patients with hypertension should eat less salt, keep a healthy weight and take their medicine every day.",
        "Inhaled corticosteroids are the first choice for long-term control of asthma in adults and in children.",
        "Gout is an inflammatory arthritis caused by crystals of uric acid. Acute attacks respond to colchicine.",
    ],
}
POOR = {
    "zh": [
        "首页 > 健康频道 > 疾病百科 > 内科 上一篇：感冒怎么办 下一篇：咳嗽吃什么药 相关阅读 热门推荐 更多>> 登录 注册",
        "楼主好人一生平安！顶顶顶！！！回复 举报 来自手机客户端 2019-05-03 12:33 1楼 沙发 2楼 板凳 楼主威武",
        "【特价包邮】正品维生素C泡腾片 买二送一 限时优惠 点击购买 下单立减 客服微信同号 免费咨询热线[电话]",
        "高血压 糖尿病 冠心病 脑梗死 肺炎 胃炎 肝炎 肾炎 白血病 贫血 甲亢 痛风 哮喘 癫痫 湿疹 荨麻疹",
        "国家队在主场以三比一战胜对手，球迷们在赛后热烈庆祝，教练表示球队将继续努力，争取更好的成绩。",
    ],
    "en": [
        "Home | About us | Contact us | Sign in | Subscribe to our newsletter | Privacy policy | Terms of use | Copyright 2019",
        "Buy now! Free shipping on vitamin C tablets. Add to cart. Click here to read more about our sponsored offers!!!",
        "ICD-10: A00 A01 A02 A03 A04 A05 B00 B01 B02 B03 C00 C01 D50 D51 E10 E11",
        "The city council approved a new budget for road repairs on Tuesday after a long debate about parking fees.",
    ],
}


def score(text, language, model=None):
    lexicon = Lexicon.load("starter")
    return ScoreModel.load(model).score(measure_features(text, None, language, lexicon), language)


@pytest.mark.parametrize("language", ["zh", "en"])
def test_every_good_passage_scores_above_every_poor_one(language):
    good, poor = ([score(text, language) for text in texts[language]] for texts in (GOOD, POOR))
    assert min(good) > max(poor) and min(good) > 0.6 and max(poor) < 0.6


def test_features_by_hand():
    lexicon = Lexicon(["高血压"])
    found = measure_features("高血压，剂量5mg。\n更多 www.a.cn ★", "题", "zh", lexicon)
    assert found["terms"] == pytest.approx(3 / 8) or found["terms"] == 0.3  # at most 0.3
    assert set(found) == set(FEATURES) and found["distinct"] == 1.0
    assert found["numbers"] == pytest.approx(1 / 11) and found["boilerplate"] == pytest.approx(10 * 1 / 11)
    assert found["links"] == pytest.approx(8 / 21) and found["symbols"] == pytest.approx(1 / 21)
    assert found["sentences"] == pytest.approx(10 / 24)  # the first sentence; what follows has no mark
    assert measure_features("", None, "en", lexicon)["sentences"] == 0.0


def write_model(folder, content):
    path = folder / "model.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_a_model_of_ones_own_decides(tmp_path):
    path = write_model(tmp_path, {"zh": {"intercept": 0, "numbers": 100}})
    assert score("血压120，心率72。", "zh", path) > 0.9 and score("血压高。", "zh", path) == 0.5
    with pytest.raises(ConfigError, match=r"no weights for the language 'en' in the score model \(.*model\.json\)"):
        score("Rest.", "en", path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read the score model"),
        ([], "wrong score model: need {language"),
        ({"zh": 5}, "wrong score model"),
        ({"zh": {"beauty": 1}}, "unknown feature: got 'beauty' of 'zh', need one of"),
        ({"zh": {"terms": "1"}}, "wrong weight of 'terms': got '1', need a number"),
        ('{"zh": {"terms": NaN}}', "wrong weight of 'terms': got nan"),
    ],
)
def test_a_wrong_model_is_named_before_any_work(content, message, tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    settings = CurationSettings(score_model=write_model(tmp_path, content))
    with pytest.raises(ConfigError, match=message):
        curate([tmp_path / "a.jsonl"], tmp_path / "out", settings)


@pytest.fixture
def mixed(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"id": f"{kind}-{language}-{number}", "source": "web", "language": language, "text": text}
        for kind, texts in (("good", GOOD), ("poor", POOR))
        for language, some in texts.items()
        for number, text in enumerate(some)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def test_the_threshold_drops_by_reason_and_the_score_reaches_the_pairs(mixed, tmp_path):
    report = curate([mixed], tmp_path / "all")
    assert "low score" not in report["rejected_by_reason"] and sum(report["by_source"]["web"]["scores"]) == 15
    report = curate([mixed], tmp_path / "out", CurationSettings(min_score=0.6))
    kept = [line.record for line in read_jsonl(tmp_path / "out" / "documents.jsonl")]
    assert {row["id"].split("-")[0] for row in kept} == {"good"} and len(kept) == 7
    assert report["rejected_by_reason"] == {"low score": 8, "mostly symbols": 1}
    assert all(0.6 <= row["metadata"]["origin"]["score"] <= 1 for row in kept)
    unify([tmp_path / "out" / "documents.jsonl"], tmp_path / "pairs")
    pairs = [line.record for line in read_jsonl(tmp_path / "pairs" / "conversations.jsonl")]
    assert [pair["provenance"]["score"] for pair in pairs] == [row["metadata"]["origin"]["score"] for row in kept]


def test_another_model_is_another_corpus(mixed, tmp_path):
    curate([mixed], tmp_path / "out")
    first = json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["score_model"]
    path = write_model(tmp_path, {"zh": {"terms": 1}, "en": {"terms": 1}})
    curate([mixed], tmp_path / "out", CurationSettings(score_model=path))
    second = json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["score_model"]
    assert first["zh"]["sentences"] > 0 and second == {"zh": {"terms": 1}, "en": {"terms": 1}}


def test_the_preview_shows_both_sides_of_the_threshold_and_writes_nothing(mixed, tmp_path):
    lines = preview_scores([mixed], CurationSettings(min_score=0.6), 2)
    assert lines[0] == "share of 15 passages that --min-score would drop:"
    assert lines[2].split()[:2] == ["web", "15"] and lines[2].split()[7] == "53.3%"
    below, above = lines.index("dropped, next to it:"), lines.index("kept, next to it:")
    assert lines[3] == "--min-score 0.6 drops 8 of 15."
    assert above - below == 3 and all("poor-" in line for line in lines[below + 1 : above])
    assert len(lines) - above == 3 and all("good-" in line for line in lines[above + 1 :])
    assert [one.name for one in tmp_path.iterdir()] == ["a.jsonl"]
    with pytest.raises(ConfigError, match="wrong --preview-scores: got 0"):
        preview_scores([mixed], CurationSettings(), 0)
    mixed.write_text("")
    with pytest.raises(DataError, match="no passage to score"):
        preview_scores([mixed], CurationSettings(), 1)
