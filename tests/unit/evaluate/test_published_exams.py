"""Every published exam in a small file of its own shape: read, asked and scored as it was published."""

import contextlib
import json
from pathlib import Path
from typing import NamedTuple

import pytest

from megatron_huatuo.errors import DataError
from megatron_huatuo.evaluate.exam import ExamSettings, run_exam
from megatron_huatuo.evaluate.generate import ModelEndpoint
from megatron_huatuo.exams.exam_formats import exam_format, exam_formats, recognise_format
from megatron_huatuo.exams.questions import find_examples, read_questions, select_questions
from megatron_huatuo.storage.jsonl import BadLines

FILES = Path(__file__).parent / "exams"


class Published(NamedTuple):
    """What a file of an exam must give. chat, completion: of its first question."""

    file: str
    exam: str
    answers: list[str]
    subsets: list[str | None]
    chat: str
    completion: str
    key: str | None = None


PUBLISHED = [
    Published(
        "2023_执业药师_中药.json", "pharmacist", ["B", "A", "C", "ABD"], ["tcm"] * 4,
        "请回答下面选择题。\n[最佳选择题]薄荷宜后下的主要原因是\nA. 有毒\nB. 含挥发油\nC. 质地坚硬\nD. 黏性大\nE. 有绒毛",
        "请回答下面选择题。\n\n[最佳选择题]薄荷宜后下的主要原因是\nA. 有毒\nB. 含挥发油\nC. 质地坚硬\nD. 黏性大\nE. 有绒毛\n答案：",
    ),
    Published(
        "cmb_test_question.json", "cmb", ["B", "AB"], ["医师考试/执业医师", "护理考试/护师"],
        "以下是中国医师考试中执业医师考试的一道单项选择题，不需要做任何分析和解释，直接输出答案选项。\n"
        "诊断高血压需要测量的是\nA. 身高\nB. 血压\nC. 体温\nD. 视力",
        "以下是中国医师考试中执业医师考试的一道单项选择题，不需要做任何分析和解释，直接输出答案选项。\n\n"
        "诊断高血压需要测量的是\nA. 身高\nB. 血压\nC. 体温\nD. 视力\n答案：",
        "cmb_test_answer.json",
    ),
    Published(
        "cmexam_test.csv", "cmexam", ["A", "ABD"], ["内科", "急诊科"],
        "问题: 发热时首先应当, \n 选项: A 测量体温\nB 检查视力\nC 检查听力\nD 拍摄胸片\nE 抽血",
        "问题: 发热时首先应当, \n 选项: A 测量体温\nB 检查视力\nC 检查听力\nD 拍摄胸片\nE 抽血\n答案: ",
    ),
    Published(
        "medqa_us_test.jsonl", "medqa", ["A", "C"], ["step1", "step2&3"],
        "Please answer the following multiple-choice question.\nQuestion: A 30-year-old man cannot read small print held close to "
        "his eyes. Which test should be done first?\nA. Visual acuity test\nB. Hearing test\nC. Chest radiograph\n"
        "D. Stress test\nE. Skin biopsy",
        "Question: A 30-year-old man cannot read small print held close to his eyes. Which test should be done first?\n"
        "A. Visual acuity test\nB. Hearing test\nC. Chest radiograph\nD. Stress test\nE. Skin biopsy\nAnswer:",
    ),
    Published(
        "medqa_us_hf_train.jsonl", "medqa", ["A"], [None],
        "Please answer the following multiple-choice question.\nQuestion: Which organ pumps blood?\nA. Heart\nB. Liver\nC. Spleen\n"
        "D. Skin",
        "Question: Which organ pumps blood?\nA. Heart\nB. Liver\nC. Spleen\nD. Skin\nAnswer:",
    ),
    Published(
        "medqa_mainland_test.jsonl", "medqa_mcmle", ["A"], ["历年真题"],
        "请回答下面选择题。\n测量血压常用的部位是\nA. 上臂\nB. 额部\nC. 腹部\nD. 背部\nE. 足底",
        "请回答下面选择题。\n\n测量血压常用的部位是\nA. 上臂\nB. 额部\nC. 腹部\nD. 背部\nE. 足底\n答案：",
    ),
    Published(
        "medmcqa_dev.json", "medmcqa", ["D", "A"], ["Anatomy", "Physiology"],
        "Please answer the following multiple-choice question.\nQuestion: Largest organ of the body is\nChoices:\nA. Heart\n"
        "B. Spleen\nC. Eye\nD. Skin",
        "Question: Largest organ of the body is\nChoices:\nA. Heart\nB. Spleen\nC. Eye\nD. Skin\nAnswer:",
    ),
    Published(
        "pubmedqa.json", "pubmedqa", ["A", "B"], [None, None],
        "Answer the question about the abstract with yes, no or maybe.\nAbstract: Forty volunteers drank water.\n"
        "Thirst was rated before and after.\nQuestion: Does drinking water quench thirst?",
        "Abstract: Forty volunteers drank water.\nThirst was rated before and after.\n"
        "Question: Does drinking water quench thirst?\nAnswer:",
    ),
    Published(
        "cmmlu/anatomy.csv", "cmmlu", ["B", "A"], ["anatomy"] * 2,
        "以下是关于解剖学的单项选择题，请直接给出正确答案的选项。\n\n题目：人体最大的器官是\nA. 心脏\nB. 皮肤\nC. 脾脏\nD. 眼球\n答案是：",
        "以下是关于解剖学的单项选择题，请直接给出正确答案的选项。\n\n题目：人体最大的器官是\nA. 心脏\nB. 皮肤\nC. 脾脏\nD. 眼球\n答案是：",
    ),
    Published(
        "ceval/physician_val.csv", "ceval", ["A"], ["physician"],
        "以下是中国关于医师资格考试的单项选择题，请选出其中的正确答案。\n\n测量体温用____。\nA. 体温计\nB. 血压计\nC. 听诊器\nD. 叩诊锤\n答案：",
        "以下是中国关于医师资格考试的单项选择题，请选出其中的正确答案。\n\n测量体温用____。\nA. 体温计\nB. 血压计\nC. 听诊器\nD. 叩诊锤\n答案：",
    ),
    Published(
        "mmlu/anatomy_test.csv", "mmlu", ["B", "A"], ["anatomy"] * 2,
        "The following are multiple choice questions (with answers) about  anatomy.\n\nWhich organ pumps blood?\nA. Liver\nB. Heart\n"
        "C. Spleen\nD. Skin\nAnswer:",
        "The following are multiple choice questions (with answers) about  anatomy.\n\nWhich organ pumps blood?\nA. Liver\nB. Heart\n"
        "C. Spleen\nD. Skin\nAnswer:",
    ),
]  # fmt: skip


def read(published):
    return read_questions([FILES / published.file], answer_key=published.key and FILES / published.key)


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.file)
def test_exam_is_recognised_read_and_asked_as_published(published):
    assert recognise_format(FILES / published.file).name == published.exam
    questions = read(published)
    assert [question.answer for question in questions] == published.answers
    assert [question.subset for question in questions] == published.subsets
    assert {question.exam for question in questions} == {published.exam} and all(q.source for q in questions)
    entry = exam_format(published.exam)
    assert entry.prompt(questions[0]) == published.chat
    assert entry.completion(questions[0]) == published.completion
    blank = " " if entry.language == "en" else ""
    letters = [letter for letter, text in questions[0].option.items() if text.strip()]
    expected = ["yes", "no", "maybe"] if published.exam == "pubmedqa" else letters
    assert list(entry.choices(questions[0]).items()) == [
        (letter, blank + text) for letter, text in zip(letters, expected, strict=True)
    ]


def test_every_published_format_has_a_file_here():
    assert {published.exam for published in PUBLISHED} == set(exam_formats()) - {"own"}


def test_every_file_is_claimed_by_one_format_only():
    for path in [path for path in FILES.rglob("*.*") if "answer" not in path.name and "ground_truth" not in path.name]:
        recognise_format(path)


@pytest.mark.parametrize(
    ("test", "dev", "expected"),
    [
        (
            "cmmlu/anatomy.csv", "cmmlu/dev/anatomy.csv",
            "以下是关于解剖学的单项选择题，请直接给出正确答案的选项。\n\n题目：视觉器官是\nA. 眼\nB. 耳\nC. 鼻\nD. 舌\n答案是：A\n\n"
            "题目：人体最大的器官是\nA. 心脏\nB. 皮肤\nC. 脾脏\nD. 眼球\n答案是：",
        ),
        (
            "mmlu/anatomy_test.csv", "mmlu/anatomy_dev.csv",
            "The following are multiple choice questions (with answers) about  anatomy.\n\nWhich organ hears?\nA. Eye\nB. Ear\n"
            "C. Nose\nD. Tongue\nAnswer: B\n\nWhich organ pumps blood?\nA. Liver\nB. Heart\nC. Spleen\nD. Skin\nAnswer:",
        ),
        (
            "ceval/physician_val.csv", "ceval/physician_dev.csv",
            "以下是中国关于医师资格考试的单项选择题，请选出其中的正确答案。\n\n测量血压用____。\nA. 体温计\nB. 血压计\nC. 听诊器\nD. 叩诊锤\n"
            "答案：B\n\n测量体温用____。\nA. 体温计\nB. 血压计\nC. 听诊器\nD. 叩诊锤\n答案：",
        ),
        (
            "cmb_test_question.json", "cmb_val.json",
            "以下是中国医师考试中执业医师考试的一道单项选择题，不需要做任何分析和解释，直接输出答案选项。\n\n测量体温用\nA. 体温计\nB. 血压计\n"
            "答案：A\n\n诊断高血压需要测量的是\nA. 身高\nB. 血压\nC. 体温\nD. 视力\n答案：",
        ),
        (
            "medqa_us_test.jsonl", "medqa_us_hf_train.jsonl",
            "Question: Which organ pumps blood?\nA. Heart\nB. Liver\nC. Spleen\nD. Skin\nAnswer: A\n\nQuestion: A 30-year-old man",
        ),
    ],
)  # fmt: skip
def test_few_shot_prompt_is_the_published_one(test, dev, expected):
    key = FILES / "cmb_test_answer.json" if test.startswith("cmb") else None
    questions, examples = read_questions([FILES / test], answer_key=key), read_questions([FILES / dev])
    prompt = exam_format(questions[0].exam).prompt(questions[0], find_examples(questions[0], examples, 1, seed=0))
    assert prompt.startswith(expected)


def test_general_exams_know_their_medical_subjects():
    questions = read_questions([FILES / "cmmlu/anatomy.csv", FILES / "cmmlu/law.csv"])
    assert [question.subset for question in questions] == ["anatomy", "anatomy", "law"]
    assert [question.subset for question in select_questions(questions, ["medical"])] == ["anatomy", "anatomy"]
    assert exam_format("cmmlu").instruction(questions[2]) == "以下是关于law的单项选择题，请直接给出正确答案的选项。"


def test_answer_key_chooses_the_questions_and_brings_their_answers():
    key = FILES / "pubmedqa_test_ground_truth.json"
    assert [(q.id, q.answer) for q in read_questions([FILES / "pubmedqa.json"], answer_key=key)] == [("2", "B")]


@pytest.mark.parametrize(
    ("file", "key", "message"),
    [
        ("ceval/physician_test.csv", None, "no answer: the exam keeps its answers elsewhere; name their file with --answer-key"),
        ("cmb_test_question.json", None, "no answer: the exam keeps its answers elsewhere"),
        ("cmb_test_question.json", {"1": "B", "3": "A"}, "1 answers of the key have no question: 3"),
        ("cmb_test_question.json", {"1": 2}, "wrong value of 'answer': got 2 in the answer key, need letters"),
        ("cmb_test_question.json", {"1": "F"}, "wrong value of 'answer': got 'F', need letters of ABCDE"),
        ("cmb_test_question.json", {"2": "BA"}, "got 'BA', need letters of ABCD in alphabetical order"),
        ("cmb_test_question.json", {"1": "AB"}, "2 right letters in a single-choice question: got 'AB' under '单项选择题'"),
        ("pubmedqa.json", {"1": "true"}, "wrong value of 'final_decision': got 'true', need yes, no or maybe"),
        ("cmb_test_question.json", {}, "no answers: "),
        ("cmb_test_question.json", ["B"], "wrong answer key: got str, need an object"),
    ],
)  # fmt: skip
def test_answers_that_are_missing_or_written_otherwise_are_named(tmp_path, file, key, message):
    if key is not None:
        (tmp_path / "key.json").write_text(json.dumps(key))
    with pytest.raises(DataError, match=message):
        read_questions([FILES / file], answer_key=None if key is None else tmp_path / "key.json")


def test_medmcqa_that_counts_from_zero_is_read_rightly_and_what_cannot_be_told_is_refused(tmp_path):
    records = [json.loads(line) for line in (FILES / "medmcqa_dev.json").read_text("utf-8").splitlines()]
    path = tmp_path / "validation.jsonl"

    def answers(*cops):
        lines = [json.dumps({**records[k % 2], "id": f"q{k}", "cop": cop}) for k, cop in enumerate(cops)]
        path.write_text("\n".join(lines) + "\n")
        return "".join(question.answer for question in read_questions([path]))

    assert answers(4, 1, 2) == "DAB" and answers(3, 0, 1) == "DAB"
    for cops, message in (
        ((0, 4), r"answers count from 0 and from 1: got `cop` \[0, 4\]"),
        ((1, 2, 3), r"cannot tell what the answers count from: got `cop` \[1, 2, 3\], need a 0 or a 4"),
        ((-1, -1), "no answers: `cop` is missing or -1 everywhere"),
        ((1, 4, 9), "wrong value of 'cop': got 8, need a number from 0 to 3"),
        ((1, 4, "2"), "wrong value of 'cop': got '2', need a number from 0 to 3"),
    ):
        with pytest.raises(DataError, match=message):
            answers(*cops)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "Question,Options,Answer\nq,plain text,A\n", "wrong value of 'Options': got 'plain text'"),
        ("x.csv", "Question,Options,Answer\nq,A 甲\n", "wrong number of columns: got 2, need 3"),
        ("x.csv", "Question,Options,Answer\nq,\"A 甲\nB 乙\",\n", "blank 'Answer': need text"),
        ("x_test.csv", "q,a,b,c,d,B\nq,a,b\n", "wrong row: got 3 cells, need question, four options and answer"),
        ("x.csv", ",Question,A,B,C,D,Answer\n0,q,a,b,,d,B\n", "blank 'C': need text"),
        ("x.json", '{"1": {"QUESTION": "q", "CONTEXTS": "c"}}', "wrong value of 'CONTEXTS': got str"),
        ("x.jsonl", '{"question": "q", "options": ["a"], "answer_idx": "A"}\n', "wrong value of 'options': got list"),
        ("x.json", '[{"exam_type": "t", "exam_class": "c", "question": "q", "option": []}]', "wrong value of 'option'"),
    ],
)  # fmt: skip
def test_bad_records_of_published_exams_are_named_with_file_and_number(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=rf"{message}.*{name}:"):
        read_questions([tmp_path / name])
    bad = BadLines(1)
    with pytest.raises(DataError, match="no questions") if name != "x_test.csv" else contextlib.nullcontext():
        read_questions([tmp_path / name], bad)
    assert len(bad.lines) == 1


def test_score_of_cmb_is_the_mean_of_types_and_of_cmmlu_the_mean_of_subjects(endpoint, tmp_path):
    endpoint.reply = lambda prompt, number: "B"
    model = ModelEndpoint(endpoint.url, "m")
    scores = run_exam(model, [FILES / "cmmlu/anatomy.csv", FILES / "cmmlu/law.csv"], tmp_path / "a")
    assert (scores["accuracy"], scores["by_exam"]["cmmlu"]["published_score"]) == (1 / 3, 1 / 4)
    key = ExamSettings(answer_key=str(FILES / "cmb_test_answer.json"))
    scores = run_exam(model, [FILES / "cmb_test_question.json"], tmp_path / "b", key)
    assert scores["by_exam"]["cmb"]["published_score"] == 0.5
    low, high = scores["by_exam"]["cmb"]["published_score_interval"]
    assert low <= 0.5 <= high


def test_yes_no_and_maybe_are_read_as_the_answers_of_pubmedqa(endpoint, tmp_path):
    endpoint.reply = lambda prompt, number: "Yes, it does." if "water" in prompt else "No."
    scores = run_exam(ModelEndpoint(endpoint.url, "m"), [FILES / "pubmedqa.json"], tmp_path / "out")
    assert scores["accuracy"] == 1


def test_prompt_of_the_recipe_can_be_used_for_every_exam_in_its_language(endpoint, tmp_path):
    settings = ExamSettings(prompt="recipe")
    files = [FILES / "cmmlu/law.csv", FILES / "mmlu/anatomy_test.csv"]
    run_exam(ModelEndpoint(endpoint.url, "m"), files, tmp_path / "out", settings)
    assert "请回答下面选择题。\n法律由谁制定\nA. 立法机关\nB. 医院\nC. 药店\nD. 学校" in endpoint.prompts
    expected = "Please answer the following multiple-choice question.\nWhich organ pumps blood?\nA. Liver\nB. Heart\nC. Spleen\nD. Skin"
    assert expected in endpoint.prompts
