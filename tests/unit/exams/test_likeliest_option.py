"""What an exam by log-likelihood asks: questions with one letter, their texts, and where the score begins."""

import doctest
import importlib

import pytest

from megatron_huatuo.exams.exam_format import ExamQuestion
from megatron_huatuo.exams.likeliest_option import option_texts, part_tokens, with_one_letter

OPTIONS = {"A": "腹水", "B": "清蛋白", "C": " "}


@pytest.mark.parametrize("name", ["likeliest_option", "questions", "exam_format"])
def test_examples_in_docstrings_are_true(name):
    assert doctest.testmod(importlib.import_module(f"megatron_huatuo.exams.{name}")).failed == 0


def test_a_question_of_a_kind_with_several_letters_is_not_asked():
    questions = [
        ExamQuestion("1", "?", OPTIONS, "A", "单选"),
        ExamQuestion("2", "?", OPTIONS, "B", "多选"),
        ExamQuestion("3", "?", OPTIONS, "AB", "多选"),
    ]
    assert with_one_letter(questions) == [0]


def test_texts_are_letters_or_options_and_blank_options_are_left_out():
    question = ExamQuestion("1", "哪项", OPTIONS, "B", None)
    assert option_texts(question) == ("请回答下面选择题。\n\n哪项\nA. 腹水\nB. 清蛋白\n答案：", {"A": "A", "B": "B"})
    assert option_texts(question, by_text=True) == ("请回答下面选择题。\n\n哪项\n答案：", {"A": "腹水", "B": "清蛋白"})


def test_a_continuation_that_melts_into_the_context_keeps_its_last_token():
    def encode(text):
        return [1] if text in ("Answer", "AnswerA") else [1, 2]

    assert part_tokens(encode, "Answer", "A") == ([], [1])
    assert part_tokens(encode, "Answer", " A") == ([1], [2])
