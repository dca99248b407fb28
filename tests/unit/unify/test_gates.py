"""What passes the gates and what does not."""

from __future__ import annotations

import pytest

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.llm.endpoint_settings import EndpointSettings
from megatron_huatuo.storage.records import Document
from megatron_huatuo.text.damage import is_repetitive
from megatron_huatuo.unify import PatienceSettings, QualitySettings, SamplingSettings
from megatron_huatuo.unify.gates import Gates, find_leak, measure_support
from megatron_huatuo.unify.gates_support import unsupported_numbers

ZH = Document(
    "z", "web", "zh", "阿司匹林用于退热镇痛，成人每次300毫克至600毫克，每日三次，饭后服用。胃溃疡患者禁用。", "阿司匹林"
)
EN = Document(
    "e", "books", "en", "Aspirin lowers fever and relieves pain. Adults take 300 mg to 600 mg three times a day after meals. "
    "It must not be used by patients with a gastric ulcer.", "Aspirin")  # fmt: skip
gates = Gates(QualitySettings())


@pytest.mark.parametrize(
    ("answer", "document", "reason"),
    [
        ("成人每次服用300毫克至600毫克，每日3次，宜在饭后服用；胃溃疡患者禁用。", ZH, None),
        ("1. 用法：成人每次300 mg，每日3次。\n2. 禁忌：胃溃疡患者禁用。", ZH, None),
        ("成人每次服用30毫克，每日三次，饭后服用。", ZH, "numbers not in the passage: 30 mg"),
        ("成人每次服用300克，每日三次，饭后服用。", ZH, "numbers not in the passage: 300 g"),
        ("糖尿病需要长期管理饮食和运动，同时要规律监测血糖水平。", ZH, "unfaithful"),
        ("Adults take 300 to 600 mg of aspirin 3 times a day after meals, to relieve pain or fever.", EN, None),
        ("Adults take 900 mg of aspirin three times a day after meals.", EN, "numbers not in the passage: 900 mg"),
        ("Bridges carry traffic over rivers and need regular inspection by engineers.", EN, "unfaithful"),
        ("As mentioned above, adults take 300 mg three times a day after meals.", EN, "answer mentions the text"),
        ("I'm sorry, but I cannot give advice on aspirin for adults.", EN, "refusal"),
        ("Adults take 300 mg three times a day after meals. I hope this helps!", EN, "boilerplate"),
        ("成人每次300毫克，每日三次。希望以上信息对您有帮助。", ZH, "boilerplate"),
        ("成人每次服用300毫克，饭后服用。", EN, "wrong language of the answer: got zh, need en"),
        ("嗯。", ZH, "answer too short"),
    ],
)  # fmt: skip
def test_answers(answer, document, reason):
    got = gates.refuse_answer(answer, "阿司匹林怎么用？", document, document.language)
    assert got is None if reason is None else got is not None and got.startswith(reason)


@pytest.mark.parametrize(
    ("question", "language", "reason"),
    [
        ("阿司匹林应当如何服用？", "zh", None),
        ("How should aspirin be taken?", "en", None),
        ("根据上述内容，阿司匹林应当如何服用？", "zh", "question mentions the text"),
        ("According to the text, how should aspirin be taken?", "en", "question mentions the text"),
        ("阿司匹林" * 50, "zh", "question too long: 200 characters"),
        ("", "zh", "blank question"),
        ("How should aspirin be taken?", "zh", "wrong language of the question"),
        (ZH.text, "zh", "question is an echo"),
    ],
)
def test_questions(question, language, reason):
    got = gates.refuse_question(question, ZH, language)
    assert got is None if reason is None else got is not None and got.startswith(reason)


@pytest.mark.parametrize(
    "text",
    ["血钾的参考值为3.5至5.5", "本品仅供参考", "患者应参考医生的意见", "英文中称为MRI", "基本文化程度", "the passage of urine",
     "a text message", "context of the disease", "Filtration is the passage of plasma"],
)  # fmt: skip
def test_medical_wording_is_no_leak(text):
    assert find_leak(text) is None


@pytest.mark.parametrize(
    "text", ["参考文献指出", "根据提供的资料", "结合以上信息", "文中提到", "本文介绍了", "这段文字说明", "the passage says", "in this text",
             "as described above", "according to the author", "the provided content"],
)  # fmt: skip
def test_mentions_of_a_reference_are_leaks(text):
    assert find_leak(text)


@pytest.mark.parametrize(
    ("answer", "passage", "missing"),
    [
        ("5 mg", "5mg", []),
        ("0.5 g", "0.50克", []),
        ("1,000 ml", "1000毫升", []),
        ("5 mg", "15 mg", ["5 mg"]),
        ("5 mg", "0.5 mg", ["5 mg"]),
        ("5 g", "5 mg", ["5 g"]),
        ("5%", "5 ％", []),
        ("维生素B12和CD4", "无", []),
        ("5-10 mg", "5 to 10 mg", []),
        ("每日3次", "每日三次", []),
        ("3 times", "three times", []),
        ("320例", "三百二十例", []),
        ("1. 休息\n2. 多饮水", "休息并多饮水", []),
        ("39.5℃", "39.5℃", []),
        ("39.5℃", "38.5℃", ["39.5"]),
        ("2 mg 和 2 mg", "无", ["2 mg"]),
    ],
)
def test_numbers_are_checked_to_the_digit(answer, passage, missing):
    assert unsupported_numbers(answer, passage) == missing


def test_support_is_defined_within_one_language_only():
    assert measure_support(ZH.text, "", ZH, "zh") == (1.0, 1.0)
    assert measure_support("Aspirin relieves pain.", "", ZH, "en") is None


def test_support_tells_the_right_passage_from_another():
    answer = "成人每次服用300毫克至600毫克，饭后服用；胃溃疡患者禁用。"
    other = Document("o", "web", "zh", "带状疱疹由病毒引起，皮疹多沿一侧神经呈带状分布，并伴有疼痛。")
    right, wrong = measure_support(answer, "", ZH, "zh"), measure_support(answer, "", other, "zh")
    assert right[0] > 0.8 and right[1] > 0.5 and wrong[0] < 0.1


@pytest.mark.parametrize(("text", "looped"), [("患者应遵医嘱。" * 30, True), (ZH.text * 2, False), (EN.text, False)])
def test_loops_are_found(text, looped):
    assert is_repetitive(text) is looped


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QualitySettings(min_answer_characters=9, max_answer_characters=9), "wrong answer lengths"),
        (lambda: QualitySettings(min_coverage=1.5), "wrong min_coverage: got 1.5, need 0 to 1"),
        (lambda: QualitySettings(near_duplicate_similarity=0), "wrong near_duplicate_similarity"),
        (lambda: QualitySettings(max_question_characters_zh=0), "wrong max_question_characters_zh: got 0"),
        (lambda: SamplingSettings(tries=0), "wrong tries: got 0, need 1 or more"),
        (lambda: SamplingSettings(temperature=3), "wrong temperature: got 3"),
        (lambda: SamplingSettings(token_limit_key="n"), "wrong token_limit_key"),
        (lambda: PatienceSettings(max_retries=-1), "wrong max_retries: got -1"),
        (lambda: PatienceSettings(backoff_s=0), "wrong backoff_s: got 0"),
        (lambda: EndpointSettings("ftp://host/v1", "m"), "need http"),
        (lambda: EndpointSettings("http://host/v1", "m", 0), "wrong max_concurrency"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_secrets_in_the_address_are_refused_and_not_repeated():
    with pytest.raises(ConfigError, match="user, password or query") as caught:
        EndpointSettings("http://user:secret@host/v1?key=secret", "m")
    assert "secret" not in str(caught.value)
