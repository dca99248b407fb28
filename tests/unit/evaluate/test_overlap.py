"""Overlap of an exam with indexes and blends that were really built: planted questions are found, near ones are not."""

import datetime
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_huatuo.blend.blend_build import build_blend
from megatron_huatuo.blend.blend_settings import parse_blend_config
from megatron_huatuo.errors import ConfigError, DataError, IntegrityError
from megatron_huatuo.evaluate.exam import ExamSettings, run_exam
from megatron_huatuo.evaluate.generate import ModelEndpoint
from megatron_huatuo.evaluate.overlap import ExamRuns, OverlapSettings, find_overlap
from megatron_huatuo.exams.exam_format import ExamQuestion
from megatron_huatuo.index.build_index import build_index

ROOT = Path(__file__).parents[3]
COUNT = 200
ZH_PARTS = [
    "老年男性",
    "青年女性",
    "学龄儿童",
    "长期吸烟",
    "从事农业",
    "夜间加重",
    "饭后出现",
    "活动后明显",
    "清晨最重",
    "受凉后发作",
    "反复咳嗽",
    "上腹隐痛",
    "双下肢水肿",
    "视物模糊",
    "关节红肿",
    "皮肤瘙痒",
    "心悸气短",
    "头晕耳鸣",
    "食欲下降",
    "尿频尿急",
    "体温略高",
    "血压正常",
    "肺部湿啰音",
    "腹部压痛",
    "未见皮疹",
    "心率偏快",
    "神志清楚",
    "颈部无抵抗",
    "肝脾未触及",
    "近期旅行归来",
    "家人有类似表现",
    "曾服用止痛药",
    "对花粉过敏",
    "大便颜色变深",
    "体重减轻",
    "睡眠很差",
    "记忆减退",
    "手指发麻",
    "声音嘶哑",
    "口腔溃疡",
]
EN_PARTS = """dry cough|burning urination|swollen ankles|blurred vision|itching rash|chest tightness|ringing ears|mild fever|weak grip|dark stools
poor sleep|hoarse voice|numb fingers|lost weight|sore gums|pale skin|slow healing|stiff neck|night sweats|loud snoring|dry mouth|cold hands
double vision|bleeding nose|painful knee|tired muscles|low appetite|frequent thirst|hair loss|short breath|racing heart|leg cramps""".replace(
    "\n", "|"
).split("|")
ZH_ASK = ["首先应做哪项检查", "最合适的处理是什么", "需要与哪种疾病相鉴别"]
EN_ASK = [
    "Which investigation should be ordered first",
    "What advice fits this visit",
    "Which organ deserves attention",
]


def stem(language, generator):
    if language == "zh":
        return f"患者，{'，'.join(generator.sample(ZH_PARTS, 9))}，{generator.choice(ZH_ASK)}"
    parts = generator.sample(EN_PARTS, 10)
    return f"A visitor has {', '.join(parts[:-1])} and {parts[-1]}. {generator.choice(EN_ASK)}?"


def options(language, generator):
    words = ZH_PARTS if language == "zh" else EN_PARTS
    return dict(zip("ABCD", generator.sample(words, 4), strict=True))


def planted(number, question, language):
    """A document that holds the question, one way or another."""
    text, ways = question.question, number % 5
    if ways == 0:
        return f"病例讨论。{text}。请大家发言。" if language == "zh" else f"Case of the week. {text} Discuss it."
    if ways == 1:
        return text.replace("，", " ").replace("。", "") if language == "zh" else text.upper().replace(",", " -")
    if ways == 2:
        return "\n".join([text, *(f"{k}. {v}" for k, v in question.option.items()), "答案：A"])
    if ways == 3:
        return text[: len(text) * 7 // 10]
    return text.translate({ord("0") + k: "０１２３４５６７８９"[k] for k in range(10)}) + "\n\n" + text[::-1]


def near(number, question, language, generator):
    """A document that is about the same and does not hold the question."""
    text, ways = question.question, number % 5
    if ways == 0:
        parts = text.split("，" if language == "zh" else " ")
        return ("，" if language == "zh" else " ").join(generator.sample(parts, len(parts)))
    if ways == 1:
        return text[: len(text) * 3 // 10] + ("另有其事" if language == "zh" else " and so on")
    if ways == 2:
        return "、".join(question.option.values()) if language == "zh" else ", ".join(question.option.values())
    if ways == 3:
        return (
            "关于本病的治疗，下列说法中错误的是哪一项"
            if language == "zh"
            else "Which of the following is the most likely diagnosis in this patient?"
        )
    return stem(language, generator)


@pytest.fixture(scope="module", params=["zh", "en"])
def exam_and_index(request, tmp_path_factory):
    """(questions, numbers of the planted ones, {number: document}, path prefix, language)."""
    language, generator = request.param, random.Random(request.param)
    folder = tmp_path_factory.mktemp(f"overlap-{language}")
    questions = [
        ExamQuestion(f"q{k}", stem(language, generator), options(language, generator), "A", source="exam")
        for k in range(COUNT)
    ]
    leaked = set(range(0, COUNT, 2))
    texts = [
        planted(k // 2, question, language) if k in leaked else near(k // 2, question, language, generator)
        for k, question in enumerate(questions)
    ]
    path = folder / "pairs.jsonl"
    with open(path, "w", encoding="utf-8") as handle:
        for k, text in enumerate(texts):
            turns = [{"from": "human", "value": "病例" if language == "zh" else "Case"}, {"from": "gpt", "value": text}]
            handle.write(json.dumps({"id": f"pair-{k}", "conversations": turns}, ensure_ascii=False) + "\n")
    tokenizer = write_tokenizer(folder, texts)
    build_index([path], folder / "index", tokenizer, workers=1)
    return questions, leaked, folder / "index", path, language


def write_tokenizer(folder, texts):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=800,
        byte_fallback=True,
        add_dummy_prefix=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def texts_of(question):
    return "\n".join([question.question, *(f"{k}. {v}" for k, v in question.option.items())]).lower()


def test_planted_questions_are_found_and_near_ones_are_not(exam_and_index):
    questions, leaked, prefix, path, _ = exam_and_index
    found, about = find_overlap(questions, [prefix], workers=1)
    right = len(found.keys() & leaked)
    assert right / len(found) >= 0.99, sorted(found.keys() - leaked)
    assert right / len(leaked) >= 0.99, sorted(leaked - found.keys())
    assert (about["documents"], about["unfindable"]) == (COUNT, 0)
    for number, places in found.items():
        assert number in {place.document for place in places}
        own = next(place for place in places if place.document == number)
        assert own.origin == (str(path), number + 1) and own.share >= 0.5
        assert own.text[:12] in texts_of(questions[number])


@pytest.mark.slow
def test_several_processes_find_the_same(exam_and_index):
    questions, _, prefix, _, _ = exam_and_index
    assert find_overlap(questions, [prefix], workers=2) == find_overlap(questions, [prefix], workers=1)


def test_short_and_common_stems_are_no_evidence():
    def question(text, *texts):
        return ExamQuestion("q", text, dict(zip("ABCD", texts, strict=False)), "A")

    runs = ExamRuns([question("最可能的诊断是", "肺炎", "哮喘"), question("Which drug?", "Aspirin", "Insulin")])
    assert runs.unfindable == [1] and runs.find("最可能的诊断是肺炎") == []
    boilerplate = question(
        "Which of the following is the most likely cause of this patient's condition?", "Flu", "Cold"
    )
    assert ExamRuns([boilerplate]).find(f"He asked: {boilerplate.question} Nobody knew.") == []
    short = question("肝素过量引起出血时应选用", "鱼精蛋白", "纳洛酮", "阿托品")
    assert ExamRuns([short]).find("肝素过量引起出血时应选用\nA. 鱼精蛋白\nB. 纳洛酮\nC. 阿托品")[0][1] == 1.0
    assert ExamRuns([]).find("任何文字") == []


@pytest.mark.slow
def test_exam_scores_with_and_without_what_overlaps_and_traces_it(exam_and_index, endpoint, tmp_path):
    questions, leaked, prefix, path, _ = exam_and_index
    file = tmp_path / "exam.jsonl"
    with open(file, "w", encoding="utf-8") as handle:
        for number, question in enumerate(questions):
            record = {
                "id": question.id,
                "question": question.question,
                "option": question.option,
                "answer": "A" if number in leaked else "B",
            }
            handle.write(json.dumps(record, ensure_ascii=False) + "\n")
    endpoint.reply = lambda prompt, number: "A"
    overlap = OverlapSettings(overlap_index=(str(prefix),), overlap_workers=1, exam_date="2999-01-01")
    scores = run_exam(ModelEndpoint(endpoint.url, "m"), [file], tmp_path / "out", ExamSettings(), overlap=overlap)
    assert scores["accuracy"] == 0.5
    assert (
        scores["overlap"]["with_overlap"]["accuracy"] > 0.99 and scores["overlap"]["without_overlap"]["accuracy"] < 0.01
    )
    assert scores["overlap"]["fresh"] is True and scores["overlap"]["data_date"] == str(datetime.date.today())
    records = [json.loads(line) for line in (tmp_path / "out" / "replies.jsonl").read_text("utf-8").splitlines()]
    (place, *_) = records[0]["overlap"]
    assert (place["prefix"], place["document"], place["origin"]) == (str(prefix), 0, [str(path), 1])
    assert records[1].get("overlap") in ([], None)
    command = [
        sys.executable,
        "tools/evaluate.py",
        "exam",
        "--base-url",
        endpoint.url,
        "--model",
        "m",
        "--questions",
        file,
    ]
    command += [
        "--output",
        tmp_path / "tool",
        "--overlap-index",
        prefix,
        "--overlap-workers",
        "1",
        "--exam-date",
        "2001-01-01",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "overlap with 200 documents: 100 questions" in done.stdout and "NOT held after the data end" in done.stdout


@pytest.mark.slow
def test_blend_names_the_rows_of_what_overlaps(exam_and_index, tmp_path):
    questions, leaked, prefix, _, _ = exam_and_index
    config = parse_blend_config(
        {
            "seq_length": 256,
            "seed": 1,
            "packing": {"window": 8},
            "sources": [{"name": "web", "path_prefix": str(prefix), "priority": 1}],
        },
        "test",
    )
    directory = build_blend(config, tmp_path / "blend")
    found, about = find_overlap(questions, [directory], workers=1)
    assert about["indexes"] == [str(prefix)] and len(found.keys() & leaked) >= 99
    from megatron_huatuo.storage.blend_files import BlendReader

    blend = BlendReader(directory)
    for places in found.values():
        for place in places:
            assert place.rows and all((0, place.document) in blend.documents_of(row) for row in place.rows)


def test_wrong_settings_and_lost_tokenizers_are_named(exam_and_index, tmp_path):
    questions, _, prefix, _, _ = exam_and_index
    with pytest.raises(ConfigError, match="--exam-date has no effect without --overlap-index"):
        OverlapSettings(exam_date="2023-10-22")
    with pytest.raises(ConfigError, match=r"wrong exam_date: got .22\.10\.2023., need YYYY-MM-DD"):
        OverlapSettings(overlap_index=("x",), exam_date="22.10.2023")
    with pytest.raises(IntegrityError, match="absent"):
        find_overlap(questions, [tmp_path / "absent"])
    tokenizer = Path(json.loads(Path(f"{prefix}.json").read_text("utf-8"))["tokenizer"]["path"])
    content = tokenizer.read_bytes()
    try:
        tokenizer.write_bytes(content + b"\0")
        with pytest.raises((DataError, ConfigError), match=r"tokenizer"):
            find_overlap(questions, [prefix], workers=1)
        tokenizer.write_bytes(content + b"\xf8\x07\x01")  # a field that sentencepiece does not know
        with pytest.raises(DataError, match="another tokenizer lies at"):
            find_overlap(questions, [prefix], workers=1)
    finally:
        tokenizer.write_bytes(content)
