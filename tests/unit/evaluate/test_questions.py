"""Reading questions in every layout, their prompt, and the chance level."""

import gzip
import itertools
import json

import pytest

from megatron_huatuo.errors import DataError
from megatron_huatuo.evaluate.questions import chance_level, question_prompt, read_questions, smallest_answers
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


def test_question_without_id_is_named_by_file_and_line_not_by_path(tmp_path):
    (tmp_path / "q.jsonl").write_text(text(RECORD, RECORD), encoding="utf-8")
    assert [question.id for question in read_questions([tmp_path / "q.jsonl"])] == ["q.jsonl:1", "q.jsonl:2"]


def test_repeated_ids_are_told_apart(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(text({**RECORD, "id": "x"}), encoding="utf-8")
    assert [question.id for question in read_questions([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])] == ["x", "x#2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (text({**RECORD, "answer": "E"}), r"wrong value of 'answer': got 'E'.*:1"),
        (text({**RECORD, "answer": "BA"}), "alphabetical order"),
        (text(RECORD) + '{"question": \n', r"malformed JSON.*:2"),
        (text({**RECORD, "option": {"A": "甲"}}), "at least two options"),
        ("", "no questions"),
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
    question = Question("1", "哪项意义不大", options, "A", "最佳选择题")
    assert question_prompt(question) == "请回答下面选择题。\n[最佳选择题]哪项意义不大\nA. 腹水\nB. 清蛋白"
    question = Question("1", "哪项意义不大", options, "A")
    assert question_prompt(question) == "请回答下面选择题。\n哪项意义不大\nA. 腹水\nB. 清蛋白"


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
