"""Wrapping of replies: peeled or rejected with a reason, while real text stays as it is; over a table of shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_huatuo.llm.thoughts import Peeled, peel_reply
from megatron_huatuo.llm.wrapping import peel_answer, peel_question

SHAPES = yaml.safe_load((Path(__file__).parent / "reply_shapes.yaml").read_text(encoding="utf-8"))
PEEL: dict[str, Callable[[str], Peeled]] = {"question": peel_question, "answer": peel_answer, "reply": peel_reply}
TEXTS = {
    "question zh": "高血压患者平时应该注意什么，为什么要定期测量血压？",
    "question en": "What should people with high blood pressure watch, and why is it measured regularly?",
    "answer zh": "高血压是慢性病，多数人早期没有不适。\\n\\n1. 少吃盐。\\n2. 定期测量血压。",
    "answer en": "High blood pressure has no early signs. Eat less salt and measure it regularly.",
    "reply zh": "高血压是慢性病，应定期测量血压。",
}


def peeled_shapes() -> Iterator[tuple[str, str]]:
    for kind, shapes in SHAPES["peeled"].items():
        for shape in shapes:
            yield kind, shape


def test_the_table_holds_enough_shapes_and_none_twice():
    shapes = [
        *peeled_shapes(),
        *((kind, text) for kind, reasons in SHAPES["rejected"].items() for texts in reasons.values() for text in texts),
    ]
    assert len(shapes) == len(set(shapes)) >= 80


@pytest.mark.parametrize(("kind", "shape"), peeled_shapes())
def test_the_text_alone_is_left_of_its_wrapping(kind, shape):
    text = TEXTS[kind]
    if "{" not in shape and '["' not in shape:
        text = text.replace("\\n", "\n")
    expected = text.replace("\\n", "\n")
    for kinds in ("question", "answer") if kind.startswith("reply") else (kind.split()[0],):
        assert PEEL[kinds](shape.replace("@", text)) == Peeled(expected)
    if kind.startswith("reply") and "solution" not in shape and "box" not in shape and "回答" not in shape:
        assert peel_reply(shape.replace("@", text)) == Peeled(expected)


@pytest.mark.parametrize(
    ("kind", "reason", "reply"),
    [
        (kind, reason, reply)
        for kind, reasons in SHAPES["rejected"].items()
        for reason, replies in reasons.items()
        for reply in replies
    ],
)
def test_what_has_two_readings_is_rejected_with_its_reason(kind, reason, reply):
    peeled = PEEL[kind.split()[0]](reply)
    assert peeled.problem is not None and peeled.problem.startswith(reason)


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in SHAPES["kept"].items() for text in texts])
def test_real_text_stays_as_it_is(kind, text):
    assert PEEL[kind.split()[0]](text) == Peeled(text)


PIECES = st.sampled_from(
    ["<think>", "</think>", "◁/think▷", "<|channel|>", "final", "analysis", "<|message|>", "<|end|>", "assistantfinal", "```", "```json\n",
     "~~~\n", "{", "}", '"answer":', '"question":', "[", "]", '"', "问题：", "回答：", "**", "好的，", "以下是", "\n", " ", "1. ", "？", "?", "Q1:",
     "<answer>", "</answer>", "</s>", "<|im_end|>", "<|im_start|>user\n", "<问>：", "\\boxed{", "高血压", "salt", "\ufeff", "\ud83d", "'", "A"]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES | st.text(max_size=8), max_size=30).map("".join), st.sampled_from(sorted(PEEL)))
def test_any_reply_gives_a_text_without_wrapping_or_a_reason(text, kind):
    peeled = PEEL[kind](text)
    assert peeled.problem or all(mark not in peeled.text for mark in ("</think>", "<|im_end|>", "<|message|>"))
    assert peeled.problem or kind == "reply" or "```" not in peeled.text


@pytest.mark.parametrize(
    "piece",
    [
        "<answer>",
        "<s>",
        " ",
        "\n",
        "<details reasoning>",
        "## Thinking\n",
        "问题：",
        "<think>",
        "```\n",
        '{"a":',
        "好的，",
    ],
)
def test_a_huge_reply_is_read_in_linear_time(piece):
    for peel in PEEL.values():
        peel(piece * (400_000 // len(piece)))
