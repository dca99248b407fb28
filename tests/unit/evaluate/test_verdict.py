"""The judge's prompt and the reading of its verdict."""

import pytest

from megatron_huatuo.evaluate.judging.answers import Answer
from megatron_huatuo.evaluate.judging.verdict import judge_prompt, parse_verdict


def answer(question, text):
    return Answer("1", (("user", question), ("assistant", text)), None)


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
        ("The second one names the dose.\n\n**2**", 2),
        ("助手1提到了剂量。\n【1】", 1),
        ("tie", 0),
        ("[[Assistant 2]]", 2),
        ("［［1］］", 1),
        ("两者都正确。\n[[相当]]", 0),
        ('```json\n{"reason": "dose", "winner": "1"}\n```', 1),
        ('{"verdict": "tie"}', 0),
        ("Points of assistant 1:\n0", None),
        ("I cannot judge this.", None),
        ("", None),
        ("[[3]]", None),
        ("Assistant 1 mentions 2 drugs.", None),
    ],
)
def test_verdict_is_read(reply, expected):
    assert parse_verdict(reply) == expected


def test_prompt_follows_the_language_of_the_question_and_keeps_braces():
    chinese = judge_prompt(answer("胃病做哪些检查？", "答{first}"), answer("胃病做哪些检查？", "{second}"))
    assert "公正的医学专家" in chinese and "答{first}" in chinese and "{second}" in chinese
    english = judge_prompt(answer("Which tests?", "one"), answer("Which tests?", "two"))
    assert "impartial medical expert" in english and english.index("one") < english.index("two")


def test_conversations_are_shown_whole_and_without_a_common_question():
    turns = (("user", "头痛"), ("assistant", "多久了？"), ("user", "三天"), ("assistant", "请就医。"))
    prompt = judge_prompt(Answer("1", turns, None), answer("头痛", "多喝水"))
    assert (
        "[问题]" not in prompt
        and "[助手1的对话]\n用户：头痛\n\n助手：多久了？\n\n用户：三天\n\n助手：请就医。\n" in prompt
    )
    english = tuple((speaker, "Where?") for speaker, _ in turns)
    prompt = judge_prompt(Answer("1", english, None), Answer("1", english, None))
    assert "[Conversation with assistant 2]" in prompt and "how the two assistants do in the conversations" in prompt
