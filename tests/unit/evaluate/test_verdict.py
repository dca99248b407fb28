"""The judge's prompt and the reading of its verdict."""

import pytest

from megatron_huatuo.evaluate.judging.verdict import judge_prompt, parse_verdict


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Both are good, the second names the dose.\n[[2]]", 2),
        ("[[1]]", 1),
        ("[[ tie ]]", 0),
        ("[[TIE]]", 0),
        ("At first I leaned to [[1]], but the dose is wrong.\n[[2]]", 2),
        ("<think>[[1]]</think>\n[[2]]", 2),
        ("Assistant 1 is better than Assistant 2.", 1),
        ("`Assistant 1` is `better than` `Assistant 2`", 1),
        ("Assistant 1 is `worse than` Assistant 2", 2),
        ("Assistant 2 is worse than Assistant 1.", 1),
        ("Assistant 2 is better than Assistant 1", 2),
        ("Assistant 1 is equal to Assistant 2", 0),
        ("Answer 2 is clearly superior to answer 1.", 2),
        ("The two answers are equally good.", 0),
        ("It is a tie.", 0),
        ("Verdict: 2", 2),
        ("Verdict: tie", 0),
        ("助手1优于助手2。", 1),
        ("助手1不如助手2", 2),
        ("综合来看，回答2更好。", 2),
        ("助手1的回答更全面，但助手2更好", 2),
        ("两者相当。", 0),
        ("结论：助手2", 2),
        ("Assistant 1 is not better than Assistant 2.", None),
        ("I cannot judge this.", None),
        ("", None),
        ("[[3]]", None),
        ("Assistant 1 mentions 2 drugs.", None),
    ],
)
def test_verdict_is_read(reply, expected):
    assert parse_verdict(reply) == expected


def test_prompt_follows_the_language_of_the_question_and_keeps_braces():
    chinese = judge_prompt("胃病做哪些检查？", "答{first}", "{second}")
    assert "公正的医学专家" in chinese and "答{first}" in chinese and "{second}" in chinese
    assert "impartial medical expert" in judge_prompt("Which tests?", "a", "b")
    assert judge_prompt("?", "one", "two").index("one") < judge_prompt("?", "one", "two").index("two")
