"""Scores: every question counts, and the table says what the file says."""

import pytest

from megatron_huatuo.evaluate.score import format_scores, score_replies
from megatron_huatuo.evaluate.significance import wilson_interval
from megatron_huatuo.exams.exam_formats import exam_format


def record(parsed, answer="A", kind="最佳选择题", source="pharmacy", finish_reason="stop", chance=0.2, **more):
    return {
        "exam": "own",
        "subset": None,
        "parsed": parsed,
        "answer": answer,
        "correct": parsed == answer,
        "question_type": kind,
        "source": source,
        "finish_reason": finish_reason,
        "chance": chance,
        **more,
    }


def test_unparsed_replies_are_wrong_and_counted_even_where_the_answer_is_b():
    scores = score_replies([record(None, "B"), record(None, "A"), record("B", "B")])
    assert (scores["count"], scores["correct"], scores["unparsed"]) == (3, 1, 2)
    assert scores["accuracy"] == 1 / 3


def test_groups_add_up_to_the_total():
    records = [
        record("A"),
        record("B"),
        record("A", source="tcm"),
        record("AB", "AB", "多项选择题", "tcm", chance=1 / 26),
    ]
    scores = score_replies(records)
    for groups in (scores["by_question_type"], scores["by_source"]):
        for key in ("count", "correct", "unparsed", "cut_off"):
            assert sum(group[key] for group in groups.values()) == scores[key]
    assert scores["by_source"]["pharmacy"]["accuracy"] == 0.5
    assert scores["by_source_and_question_type"]["tcm"]["多项选择题"]["correct"] == 1
    assert scores["mean_over_sources"] == pytest.approx((0.5 + 1.0) / 2)
    assert scores["chance"] == pytest.approx((3 * 0.2 + 1 / 26) / 4)
    assert scores["interval"] == list(wilson_interval(3, 4))
    low, high = scores["mean_over_sources_interval"]
    assert low < 0.75 < high


def test_missing_replies_are_neither_right_nor_wrong():
    missing = {"correct": None, "finish_reason": "failed: HTTP 500"}
    scores = score_replies([record("A"), record("B"), record(None, **missing), record(None)])
    assert (scores["count"], scores["answered"], scores["missing"], scores["unparsed"]) == (4, 3, 1, 1)
    assert scores["accuracy"] == 1 / 3 and scores["complete"] is False
    scores = score_replies([record(None, **missing)])
    assert scores["accuracy"] is scores["interval"] is scores["mean_over_sources"] is None
    assert "missing" in format_scores(scores)


def test_published_score_is_the_mean_that_the_exam_publishes(monkeypatch):
    records = [record("A", subset="anatomy"), *[record("B", subset="surgery")] * 3]
    assert score_replies(records)["by_exam"]["own"]["published_score"] == 0.25
    monkeypatch.setattr(type(exam_format("own")), "mean_over", "subsets")
    assert score_replies(records)["by_exam"]["own"]["published_score"] == 0.5
    assert set(score_replies(records)["by_subset"]) == {"anatomy", "surgery"}


def test_half_a_multiple_answer_is_wrong():
    assert score_replies([record("A", "AB")])["correct"] == 0


def test_questions_without_type_and_source_have_a_group():
    scores = score_replies([record("A", kind=None, source=None)])
    assert list(scores["by_question_type"]) == list(scores["by_source"]) == ["-"]


def test_table_shows_every_group_aligned():
    records = [record("A"), record(None), record("A", kind="多项选择题", source="tcm"), record("B", source="tcm")]
    lines = format_scores(score_replies(records)).splitlines()
    assert len(lines) == 1 + 1 + 3 + 1
    assert lines[-1].split()[:4] == ["total", "all", "4", "2"]
    columns = {sum(2 if ord(character) > 0x2E80 else 1 for character in line) for line in lines}
    assert len(columns) == 1
