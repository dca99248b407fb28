"""Lexicon and contamination, each by itself."""

from __future__ import annotations

import pytest

from megatron_huatuo.corpus.contamination import ExamIndex
from megatron_huatuo.corpus.lexicon import STARTER, Lexicon
from megatron_huatuo.storage.records import Question


def test_density_takes_the_longest_term_once():
    lexicon = Lexicon(["高血压", "血压", "压", "aspirin", "ulcers"])
    assert lexicon.density("高血压，血压", "zh") == 1.0 and lexicon.density("天气很好", "zh") == 0.0
    assert lexicon.density("Aspirins and ulcers hurt", "en") == 0.5
    assert lexicon.density("", "zh") == 0.0 == lexicon.density("123", "en")


def test_the_starter_lexicon_has_both_languages_and_no_doubles():
    terms = [line for line in STARTER.read_text("utf-8").splitlines() if not line.startswith("#")]
    assert len(terms) == len(set(terms)) and sum(term.isascii() for term in terms) > 300
    assert sum(not term.isascii() for term in terms) > 300


def make_question(text):
    return Question("q", text, {"A": "是", "B": "否"}, "A")


@pytest.mark.parametrize(
    ("question", "passage", "hit"),
    [
        ("一二三四五六七八九十甲乙丙", "前一二三四五六七八九十甲乙丙后", True),
        ("一二三四五六七八九十甲乙丙", "前一二三四五六七八九十甲乙后", False),
        ("一二三四五六七八九十甲乙丙", "一二三，四五六 七八九。十甲乙丙", True),
        ("one two three four five six seven eight", "So One two, three four five six seven EIGHT.", True),
        ("one two three four five six seven eight", "one two three four five six seven nine", False),
        ("每次服用 aspirin 一百毫克每日三次", "医嘱：每次服用Aspirin一百毫克，每日三次。", True),
    ],
)
def test_a_hit_is_a_run_of_13_or_8_tokens(question, passage, hit):
    found = ExamIndex([make_question(question)]).find(passage)
    assert (found is not None) is hit
