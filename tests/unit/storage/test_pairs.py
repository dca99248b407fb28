"""Published pairs in their real shapes: read right, refused by name, or counted; nothing is lost in silence."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_huatuo.errors import BlankTextError, DataError
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.pairs import parse_conversations, read_dialogues
from megatron_huatuo.storage.record_files import read_records

Q, A, Q2, A2 = "孩子咳嗽怎么办？", "多饮水，必要时就医。", "要吃药吗？", "先看医生。"
PAIR = [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]


def told(raw):
    """(system, [(speaker, value, trained)…], notes) of the only conversation of a record."""
    notes: Counter[str] = Counter()
    (conversation,) = parse_conversations(raw, "f:1", notes)
    return conversation.system, [tuple(turn) for turn in conversation.turns], dict(notes)


def pairs(*texts, untrained=()):
    return [("gpt" if i % 2 else "human", text, i not in untrained) for i, text in enumerate(texts)]


SHAPES = {
    "CMtMedQA": ({"instruction": Q2, "input": "", "output": A2, "history": [[Q, A]], "cate1": "儿科"},
                 (None, pairs(Q, A, Q2, A2), {"key not read: cate1": 1})),
    "alpaca with history as text, from a table": ({"instruction": Q2, "input": "", "output": A2, "history": json.dumps([[Q, A]])},
                                                  (None, pairs(Q, A, Q2, A2), {})),
    "alpaca with an empty history": ({"instruction": Q, "input": "", "output": A, "history": [], "system": ""}, (None, pairs(Q, A), {})),
    "alpaca with a blank instruction": ({"instruction": " ", "input": Q, "output": A}, (None, pairs(Q, A), {})),
    "no instruction at all": ({"instruction": None, "input": Q, "output": A}, (None, pairs(Q, A), {})),
    "input and output": ({"input": Q, "output": A}, (None, pairs(Q, A), {})),
    "dolly": ({"instruction": Q, "context": "三岁", "response": A, "category": "qa"},
              (None, pairs(f"{Q}\n三岁", A), {"key not read: category": 1})),
    "ms-swift": ({"system": "医生", "query": Q2, "response": A2, "history": [[Q, A]]}, ("医生", pairs(Q, A, Q2, A2), {})),
    "open orca": ({"system_prompt": "医生", "question": Q, "response": A}, ("医生", pairs(Q, A), {})),
    "LLaMA-Factory": ({"system": "医生", "tools": "[]", "conversations": PAIR}, ("医生", pairs(Q, A), {})),
    "DISC-Med-SFT": ({"_id": 1, "source": "dialogue", "conversation": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]},
                     (None, pairs(Q, A), {})),
    "roles under conversations": ({"conversations": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]}, (None, pairs(Q, A), {})),
    "HuatuoGPT-sft-data-v1": ({"data": [f"问：{Q}", f"答：{A}", f"问：{Q2}", f"答：{A2}"]}, (None, pairs(Q, A, Q2, A2), {})),
    "marks in both of a pair": ({"instruction": f"问：{Q}", "input": "", "output": f"答：{A}"}, (None, pairs(Q, A), {})),
    "a mark in the question alone": ({"question": f"患者：{Q}", "answer": A}, (None, pairs(f"患者：{Q}", A), {})),
    "a list whose question begins like a mark": (["患者：男，五十岁", A], (None, pairs("患者：男，五十岁", A), {})),
    "MedDialog": ({"description": "咳嗽", "utterances": [f"病人：{Q}", f"医生：{A}"]}, (None, pairs(Q, A), {"key not read: description": 1})),
    "Chinese-medical-dialogue-data": ({"department": "儿科", "title": "咳嗽", "ask": Q, "answer": A},
                                      (None, pairs(Q, A), {"key not read: department": 1, "key not read: title": 1})),
    "medical-o1": ({"Question": Q, "Complex_CoT": "想一想", "Response": A}, (None, pairs(Q, A), {"key not read: Complex_CoT": 1})),
    "Huatuo26M-Lite": ({"id": 3, "question": Q, "answer": A, "label": "儿科", "related_diseases": "咳嗽", "score": 4},
                       (None, pairs(Q, A), {"key not read: label": 1, "key not read: related_diseases": 1, "key not read: score": 1})),
    "Huatuo-26M with other wordings": ({"questions": [[Q, "咳嗽？"], [Q2]], "answers": [A, A2]},
                                       (None, pairs(Q, A), {"left out: other wording of a question": 2, "left out: other answer": 1})),
    "OpenAI fine-tuning": ({"messages": [{"role": "developer", "content": "只用一句话"}, {"role": "user", "content": Q, "name": "li"},
                                         {"role": "assistant", "content": "错", "weight": 0}, {"role": "user", "content": Q2},
                                         {"role": "assistant", "content": A2, "weight": 1}]},
                           ("只用一句话", pairs(Q, "错", Q2, A2, untrained=[1]), {"key not read: messages[].name": 1})),
    "loss flags of ms-swift": ({"messages": [{"role": "user", "content": Q, "loss": False}, {"role": "assistant", "content": A, "loss": True},
                                             {"role": "user", "content": Q2}, {"role": "assistant", "content": A2, "loss": False}]},
                               (None, pairs(Q, A, Q2, A2, untrained=[3]), {})),
    "train flags of axolotl": ({"conversations": [PAIR[0], {**PAIR[1], "train": False}, {"from": "human", "value": Q2}, {"from": "gpt", "value": A2}]},
                               (None, pairs(Q, A, Q2, A2, untrained=[1]), {})),
    "KTO": ({"instruction": Q, "input": "", "output": A, "kto_tag": False}, (None, pairs(Q, A, untrained=[1]), {})),
    "KTO of TRL": ({"prompt": Q, "completion": A, "label": False}, (None, pairs(Q, A, untrained=[1]), {})),
    "a good KTO answer": ({"instruction": Q, "input": "", "output": A, "kto_tag": True}, (None, pairs(Q, A), {})),
    "one system text in two places": ({"system": "医生", "messages": [{"role": "system", "content": "医生"}, {"role": "user", "content": Q},
                                                                     {"role": "assistant", "content": A}]}, ("医生", pairs(Q, A), {})),
    "empty values": ({"instruction": Q, "input": None, "output": A, "images": [], "note": "  ", "tags": {}}, (None, pairs(Q, A), {})),
    "speakers in capitals": ({"conversations": [{"from": "Human", "value": Q}, {"from": "Assistant", "value": A}]}, (None, pairs(Q, A), {})),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_published_shape_is_read_right_and_every_other_key_is_counted(name):
    raw, expected = SHAPES[name]
    assert told(raw) == expected


REFUSED = {
    "speaker in the middle": ({"conversations": [*PAIR, {"from": "bing", "value": Q2}, {"from": "gpt", "value": A2}]}, "unknown speaker: got 'bing'"),
    "speaker at the end": ({"messages": [{"role": "user", "content": Q}, {"role": "bard", "content": A}]}, "unknown speaker: got 'bard'"),
    "tool turns": ({"conversations": [*PAIR, {"from": "observation", "value": "{}"}]}, "unknown speaker: got 'observation'"),
    "tools": ({"tools": '[{"name": "search"}]', "conversations": PAIR}, "tools cannot be kept: got 'tools'"),
    "tool calls": ({"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": A, "tool_calls": [{"id": "1"}]}]},
                   r"tools cannot be kept: got messages\[\]\.'tool_calls'"),
    "picture": ({"instruction": Q, "output": A, "images": ["x.png"]}, "pictures and sounds cannot be kept: got 'images'"),
    "preference": ({"instruction": Q, "input": "", "chosen": A, "rejected": A2}, "answers to choose from cannot be kept: got '(chosen|rejected)'"),
    "reward set": ({"question": Q, "response_chosen": A, "response_rejected": A2}, "answers to choose from cannot be kept"),
    "exam question": ({"question": Q, "options": {"A": "x", "B": "y"}, "answer": "A"}, "options of an exam question cannot be kept: got 'options'"),
    "history beside messages": ({"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}], "history": [[Q, A]]},
                                "earlier turns cannot be kept: got 'history' beside 'messages'"),
    "history of one": ({"instruction": Q, "output": A, "history": [[Q]]}, r"wrong value of 'history': got list, need a list of \[question, answer\]"),
    "history that is not JSON": ({"instruction": Q, "output": A, "history": "[['a', 'b']]"}, "wrong value of 'history': got text that is not JSON"),
    "a tag in words": ({"instruction": Q, "output": A, "kto_tag": "bad"}, "wrong value of 'kto_tag': got 'bad', need true or false"),
    "half a weight": ({"conversations": [PAIR[0], {**PAIR[1], "weight": 0.5}]}, "wrong value of 'weight': got 0.5, need 0 or 1"),
    "a weight in words": ({"conversations": [PAIR[0], {**PAIR[1], "loss": "no"}]}, "wrong value of 'loss': got 'no'"),
    "two system texts": ({"system": "甲", "messages": [{"role": "system", "content": "乙"}, {"role": "user", "content": Q}, {"role": "assistant", "content": A}]},
                         "two system texts"),
    "system in the middle": ({"conversations": [*PAIR, {"from": "system", "value": "x"}, *PAIR]}, "wrong speaker in turn 2: got 'system', need 'human'"),
    "two questions": ({"conversations": [PAIR[0], PAIR[0], PAIR[1], PAIR[1]]}, "wrong speaker in turn 1: got 'human', need 'gpt'"),
    "turns of Firefly": ({"conversation": [{"human": Q, "assistant": A}]}, r"turn without a speaker: got keys \['assistant', 'human'\], need 'from'"),
    "answers of Medical-R1": ({"question": Q, "reasoning (reasoning_content)": "x", "response (content)": A},
                              r"answer under an unknown key: got 'response \(content\)', need one of \['answer'"),
    "answers of PubMedQA": ({"question": Q, "context": {"contexts": ["x"]}, "long_answer": A, "final_decision": "yes"}, "unknown key: got 'long_answer'"),
    "answers of HC3": ({"question": Q, "answer": [A]}, "wrong answer: got list under 'answer', need text"),
    "no layout": ({"text": A, "kind": "x"}, r"unknown layout.*got keys \['kind', 'text'\]"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("tag", "trained"), [("False", False), ("false", False), (0, False), ("1", True), (True, True), (None, True)]
)
def test_a_bad_answer_is_not_trained_on_however_a_table_writes_its_tag(tag, trained):
    (conversation,) = parse_conversations({"instruction": Q, "output": A, "kto_tag": tag}, "f:1")
    assert conversation.turns[1].trained is trained


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_refused_by_name_and_place(name):
    raw, message = REFUSED[name]
    with pytest.raises(DataError, match=message) as caught:
        parse_conversations(raw, "file.jsonl:3")
    assert "file.jsonl:3" in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        {"instruction": "", "input": " ", "output": A},
        {"instruction": Q, "output": "\n"},
        {"question": "", "answer": A},
        {"instruction": Q, "output": A, "history": [["", A]]},
    ],
)
def test_a_blank_text_is_counted_not_lost(raw, tmp_path):
    with pytest.raises(BlankTextError):
        parse_conversations(raw, "f:1")
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(raw) + "\n")
    bad = BadLines()
    assert list(read_records(path, parse_conversations, bad)) == [] and bad.tolerated == {"blank text": 1}


def test_of_a_refused_record_no_key_is_told():
    notes: Counter[str] = Counter()
    with pytest.raises(DataError):
        parse_conversations({"question": Q, "answer": 5, "label": "x"}, "f:1", notes)
    assert not notes


def test_the_system_text_and_the_flags_survive_the_way_to_disk_and_back():
    (conversation,) = parse_conversations(
        {"id": "c", "system": "医生", "conversations": [PAIR[0], {**PAIR[1], "weight": 0}, *PAIR]}, "f:1"
    )
    record = conversation.to_record()
    assert record["system"] == "医生" and record["conversations"][1] == {"from": "gpt", "value": A, "weight": 0}
    assert parse_conversations(json.loads(json.dumps(record)), "f:9") == [conversation]


words = st.text("问答：医生病人血压 ab\n", max_size=6)
names = st.sampled_from(
    ["conversations", "messages", "conversation", "instruction", "input", "output", "history", "system", "question", "query",
     "answer", "response", "data", "dialogue", "utterances", "questions", "answers", "id", "_id", "source", "provenance",
     "from", "value", "role", "content", "weight", "loss", "tools", "images", "chosen", "options", "kto_tag", "label", "text"]
)  # fmt: skip
speakers = st.sampled_from(["human", "gpt", "user", "assistant", "system", "tool", "医生"])
turn = st.fixed_dictionaries(
    {}, optional={"from": speakers, "value": words, "role": speakers, "content": words, "weight": st.sampled_from([0, 1, None, "1", 2])}
)  # fmt: skip
leaves = st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=False) | words
values = st.recursive(
    leaves | turn,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
records = (
    st.dictionaries(names, values | st.lists(turn, max_size=4), max_size=5) | st.lists(values, max_size=4) | values
)


@pytest.mark.slow
@given(st.lists(records, min_size=1, max_size=6))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_record_is_a_conversation_a_bad_line_or_a_counted_blank(tmp_path, batch):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(batch, ensure_ascii=False), "utf-8")
    bad = BadLines(999)
    made: list[int] = []

    def parse(raw, where):
        found = parse_conversations(raw, where, bad.tolerated)
        made.append(1)
        for conversation in found:
            assert len(conversation.turns) % 2 == 0 and all(turn.value.strip() for turn in conversation.turns)
            assert [turn.speaker for turn in conversation.turns[:2]] == ["human", "gpt"]
            json.dumps(conversation.to_record(), allow_nan=False)
        return found

    list(read_records(path, parse, bad))
    assert len(made) + len(bad.lines) + bad.tolerated["blank text"] == len(batch)


@pytest.mark.slow
@given(st.dictionaries(names, values, max_size=6))
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_key_with_content_is_read_or_counted(record):
    """The text of a key that is neither read nor refused is named in the notes."""
    notes: Counter[str] = Counter()
    marked = {**record, "extra_text": "内容"}
    try:
        read_dialogues(marked, "f:1", notes)
    except DataError:
        return
    assert notes["key not read: extra_text"] == 1
