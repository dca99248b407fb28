"""Reading questions in every layout, their prompt, and the chance level."""

import gzip
import itertools
import json

import pytest

from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.exams.exam_format import ExamQuestion
from megatron_huatuo.exams.exam_formats import exam_format
from megatron_huatuo.exams.questions import (
    chance_level,
    find_examples,
    read_questions,
    select_questions,
    smallest_answers,
)
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.records import Question

RECORD = {"question": "哪项正确", "option": {"A": "甲", "B": "乙", "C": ""}, "answer": "B"}


def text(*records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def test_every_layout_gives_the_same_questions(tmp_path):
    first, second = {**RECORD, "id": 1}, {**RECORD, "id": "two"}
    layouts = {
        "a.jsonl": text(first, second),
        "b.json": json.dumps([first, second]),
        "c.json": json.dumps({"exam": [first, second]}),
        "d.jsonl": text({"exam": [first, second]}),
        "e.json": text(first, second),
        "f.jsonl": "\ufeff" + text(first, second).replace("\n", "\r\n"),
    }
    for name, content in layouts.items():
        (tmp_path / name).write_bytes(content.encode())
        questions = read_questions([tmp_path / name])
        assert [question.id for question in questions] == ["1", "two"], name
        assert {question.source for question in questions} == {"exam" if name in ("c.json", "d.jsonl") else None}
    with gzip.open(tmp_path / "g.jsonl.gz", "wb") as handle:
        handle.write(layouts["a.jsonl"].encode())
    assert len(read_questions([tmp_path / "g.jsonl.gz"])) == 2


def test_an_answer_key_in_another_encoding_is_read_or_named(tmp_path):
    questions = text({**RECORD, "id": "第1题", "answer": "A"})
    (tmp_path / "q.jsonl").write_text(questions, encoding="utf-8")
    key = json.dumps({"第1题": "B"}, ensure_ascii=False)
    for encoding in ("gb18030", "utf-16"):
        (tmp_path / "key.json").write_bytes(key.encode(encoding))
        (question,) = read_questions([tmp_path / "q.jsonl"], answer_key=tmp_path / "key.json")
        assert (question.id, question.answer) == ("第1题", "B")
    (tmp_path / "key.json").write_bytes(b'{"q\xff1": "B"}')
    with pytest.raises(DataError, match=r"invalid UTF-8: byte 3 \(.*key\.json:1\)"):
        read_questions([tmp_path / "q.jsonl"], answer_key=tmp_path / "key.json")


def test_question_without_id_is_named_by_file_and_line_not_by_path(tmp_path):
    (tmp_path / "q.jsonl").write_text(text(RECORD, RECORD), encoding="utf-8")
    assert [question.id for question in read_questions([tmp_path / "q.jsonl"])] == ["q.jsonl:1", "q.jsonl:2"]


def test_equal_ids_of_two_exams_are_told_apart(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(text({**RECORD, "id": "x"}), encoding="utf-8")
    assert [question.id for question in read_questions([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])] == ["x", "x#2"]
    grouped = {"first": [{**RECORD, "id": 1}], "second": [{**RECORD, "id": 1}]}
    (tmp_path / "c.json").write_text(json.dumps(grouped), encoding="utf-8")
    assert [question.id for question in read_questions([tmp_path / "c.json"])] == ["1", "1#2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (text({**RECORD, "answer": "E"}), r"wrong value of 'answer': got 'E'.*:1"),
        (text({**RECORD, "answer": "BA"}), "alphabetical order"),
        (text(RECORD) + '{"question": \n', r"malformed JSON.*:2"),
        (text({**RECORD, "option": {"A": "甲"}}), "at least two options"),
        ("", "no questions"),
        (text({**RECORD, "id": "7"}, {**RECORD, "id": "7"}), r"repeated id: got '7' again, first at .*q.jsonl:1.*:2"),
        (text({**RECORD, "answer": "C"}), "right option is blank: got no text under C"),
        (text({**RECORD, "option": {"A": "", "B": "乙", "C": " "}}), "missing options: got 1 with a text"),
        (
            text({**RECORD, "answer": "AB", "question_type": "单项选择题"}),
            "2 right letters in a single-choice question",
        ),
        (text({**RECORD, "answer": "AB", "question_type": "A1型题"}), "got 'AB' under 'A1型题', need one"),
        (text({**RECORD, "answer": "2"}), r"wrong value of 'answer': got '2', need letters of ABC"),
        (text({**RECORD, "answer": "b"}), r"wrong value of 'answer': got 'b', need letters of ABC"),
    ],
)
def test_bad_questions_are_named(tmp_path, content, message):
    (tmp_path / "q.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_questions([tmp_path / "q.jsonl"])


def test_allowed_bad_lines_are_skipped_and_counted(tmp_path):
    (tmp_path / "q.jsonl").write_text(text(RECORD) + "{\n" + text(RECORD), encoding="utf-8")
    bad = BadLines(1)
    assert len(read_questions([tmp_path / "q.jsonl"], bad)) == 2
    assert [line.line for line in bad.lines] == [2]


def test_prompt_is_the_one_of_the_recipe():
    options = {"A": "腹水", "B": "清蛋白", "C": " "}
    prompt = exam_format("own").prompt
    question = ExamQuestion("1", "哪项意义不大", options, "A", "最佳选择题")
    assert prompt(question) == "请回答下面选择题。\n[最佳选择题]哪项意义不大\nA. 腹水\nB. 清蛋白"
    question = ExamQuestion("1", "哪项意义不大", options, "A")
    assert prompt(question) == "请回答下面选择题。\n哪项意义不大\nA. 腹水\nB. 清蛋白"


def test_few_shot_prompt_shows_solved_examples_before_the_question():
    options = {"A": "甲", "B": "乙"}
    example = ExamQuestion("1", "其一", options, "AB", "多项选择题")
    question = ExamQuestion("2", "其二", options, "A")
    assert exam_format("own").prompt(question, [example]) == (
        "请回答下面选择题。\n\n[多项选择题]其一\nA. 甲\nB. 乙\n答案：AB\n\n其二\nA. 甲\nB. 乙\n答案："
    )


def numbered(count, **fields):
    return [ExamQuestion(f"q{k}", f"问{k}", {"A": "甲", "B": "乙"}, "A", **fields) for k in range(count)]


def test_limit_draws_by_the_seed_and_keeps_the_order_of_the_exam():
    exam = numbered(100)
    drawn = select_questions(exam, limit=10, seed=1)
    assert len(drawn) == 10 and drawn == sorted(drawn, key=exam.index)
    assert select_questions(exam, limit=10, seed=1) == drawn != select_questions(exam, limit=10, seed=2)
    assert select_questions(exam, limit=200) == exam


def test_subset_is_a_subset_a_source_or_a_question_type():
    exam = [*numbered(2, source="Pharmacy"), *numbered(3, question_type="多项选择题"), *numbered(4, subset="anatomy")]
    assert len(select_questions(exam, ["pharmacy"])) == 2
    assert len(select_questions(exam, ["多项选择题", "Anatomy"])) == 7
    with pytest.raises(ConfigError, match=r"unknown subset: got surgery, need some of Pharmacy, anatomy, 多项选择题"):
        select_questions(exam, ["surgery"])
    with pytest.raises(ConfigError, match="got surgery, need none: the questions name neither subsets nor types"):
        select_questions(numbered(2), ["surgery"])


def test_examples_never_hold_the_question_itself_and_are_of_its_kind_first():
    exam = [*numbered(5, question_type="单选"), *(ExamQuestion(f"m{k}", f"多{k}", {}, "AB", "多选") for k in range(5))]
    for question in exam:
        examples = find_examples(question, exam, 4, seed=0)
        assert question not in examples
        assert {example.question_type for example in examples} == {question.question_type}
        assert examples == find_examples(question, exam, 4, seed=0)
    assert len(find_examples(exam[0], exam, 9, seed=0)) == 9
    with pytest.raises(DataError, match="not enough examples: got 9 of exam 'own', need 10"):
        find_examples(exam[0], exam, 10, seed=0)


@pytest.mark.parametrize("num_options", [2, 4, 5])
@pytest.mark.parametrize("smallest", [1, 2])
def test_chance_level_is_one_over_the_number_of_possible_answers(num_options, smallest):
    sizes = range(smallest, num_options + 1)
    possible = sum(len(list(itertools.combinations(range(num_options), size))) for size in sizes)
    assert chance_level(num_options, smallest) == pytest.approx(1 / possible)
    assert chance_level(num_options, 0) == 1 / num_options


def test_number_of_letters_asked_for_follows_the_question_type():
    def question(answer, kind):
        return Question("1", "?", {"A": "", "B": "", "C": ""}, answer, kind)

    exam = [question("A", "one"), question("ABC", "many"), question("A", "any"), question("BC", "any")]
    exam += [question("A", None), question("BC", None)]
    assert smallest_answers(exam) == [0, 2, 1, 1, 0, 2]
